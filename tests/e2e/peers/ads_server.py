"""A discovery server of delta ADS, made of Envoy's own protobufs. Arguments: PORT ENDPOINT-PORT.

Tells of one cluster's endpoints, `orders.shop:80`: one on that port. Its very first answer
is of a type that nobody asked for. Writes each request as a line of JSON.
"""

import concurrent.futures
import json
import os
import sys

import grpc
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

ASSIGNMENT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
NAME = "orders.shop:80"


def assignment():
    told = endpoint_pb2.ClusterLoadAssignment(cluster_name=NAME)
    told.policy.overprovisioning_factor.value = 140
    group = told.endpoints.add()
    group.locality.region = "somewhere"
    group.load_balancing_weight.value = 3
    address = group.lb_endpoints.add().endpoint.address.socket_address
    address.address = "127.0.0.1"
    address.port_value = int(sys.argv[2])
    return told


class Service(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def DeltaAggregatedResources(self, requests, context):
        count = 0
        for request in requests:
            line = {
                "node": request.node.id,
                "subscribe": list(request.resource_names_subscribe),
                "versions": dict(request.initial_resource_versions),
                "nonce": request.response_nonce,
                "error": request.error_detail.message,
            }
            print(json.dumps(line), flush=True)
            if NAME not in request.resource_names_subscribe:
                continue
            count += 1
            yield discovery_pb2.DeltaDiscoveryResponse(nonce=str(count), type_url="type.googleapis.com/nobody.asked.For")
            count += 1
            answer = discovery_pb2.DeltaDiscoveryResponse(nonce=str(count), type_url=ASSIGNMENT, system_version_info="7")
            answer.control_plane.identifier = "others"
            resource = answer.resources.add(name=NAME, version="v1")
            resource.ttl.seconds = 3600
            resource.resource.Pack(assignment())
            yield answer


server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), options=(("grpc.so_reuseport", 0),))
ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Service(), server)
server.add_insecure_port(f"{os.environ['LISTEN_ON']}:{sys.argv[1]}")
server.start()
server.wait_for_termination()

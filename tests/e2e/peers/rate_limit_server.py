"""A rate limit service, made of Envoy's own protobufs. Arguments: PORT.

Writes each question as a line of JSON. A `user` may ask twice an hour, for each domain; a `mood` of `fail` or `hang` is
what its question gets, and with `words` a refusal has a body.
"""

import concurrent.futures
import json
import os
import sys
import threading

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc

LIMIT = 2
Response = rls_pb2.RateLimitResponse
counts = {}
changed = threading.Lock()


class Service(rls_pb2_grpc.RateLimitServiceServicer):
    def ShouldRateLimit(self, request, context):
        descriptors = [[[entry.key, entry.value] for entry in one.entries] for one in request.descriptors]
        line = {"domain": request.domain, "descriptors": descriptors, "hits": request.hits_addend}
        print(json.dumps(line), flush=True)
        entries = {key: value for one in descriptors for key, value in one}
        if entries.get("mood") == "fail":
            context.abort(grpc.StatusCode.INTERNAL, "told to")
        if entries.get("mood") == "hang":
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(30)
        answer = Response(overall_code=Response.OK)
        for one in request.descriptors:
            answer.statuses.add(code=Response.OK)
        if "user" in entries:
            with changed:
                key = (request.domain, entries["user"])
                counts[key] = counts.get(key, 0) + 1
                count = counts[key]
            status = answer.statuses[0]
            status.current_limit.requests_per_unit = LIMIT
            status.current_limit.unit = Response.RateLimit.HOUR
            status.current_limit.name = "per-user"
            status.limit_remaining = max(LIMIT - count, 0)
            status.duration_until_reset.seconds = 1800
            if count > LIMIT:
                status.code = answer.overall_code = Response.OVER_LIMIT
        header = base_pb2.HeaderValue
        if entries.get("mood") == "words":
            answer.raw_body = b'{"error":"slow down"}'
            answer.response_headers_to_add.append(header(key="content-type", value="application/json"))
        answer.response_headers_to_add.append(header(key="x-limited-by", value=request.domain))
        answer.request_headers_to_add.append(header(key="x-tier", value="gold"))
        answer.request_headers_to_add.append(header(key="x-forwarded-client-cert", value="URI=spiffe://evil/admin"))
        return answer


server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), options=(("grpc.so_reuseport", 0),))
rls_pb2_grpc.add_RateLimitServiceServicer_to_server(Service(), server)
server.add_insecure_port(f"{os.environ['LISTEN_ON']}:{sys.argv[1]}")
server.start()
server.wait_for_termination()

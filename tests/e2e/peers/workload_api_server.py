"""A SPIFFE Workload API made of py-spiffe's protobufs. Arguments: SOCKET STATE.

STATE is a file of JSON, read again when it changes, and told to all who listen:
{"svids": [{"spiffe_id": "", "certificate": FILE, "key": FILE, "bundle": [FILE], "hint": ""}], "federated": {ID: FILE}},
the files PEM, the key PKCS#8. Without `svids` nobody has an identity. As the specification asks, a call without the
security header is refused.
"""

import base64
import concurrent.futures
import json
import re
import sys
import time

import grpc
from spiffe._proto import workload_pb2, workload_pb2_grpc


def ders(path):
    with open(path) as file:
        return [base64.b64decode(text) for text in re.findall("-----BEGIN [^-]+-----([^-]+)-----END", file.read())]


def told(state):
    answer = workload_pb2.X509SVIDResponse()
    for svid in state["svids"]:
        answer.svids.add(
            spiffe_id=svid["spiffe_id"],
            x509_svid=b"".join(ders(svid["certificate"])),
            x509_svid_key=ders(svid["key"])[0],
            bundle=b"".join(der for path in svid["bundle"] for der in ders(path)),
            hint=svid.get("hint", ""),
        )
    for domain, path in state.get("federated", {}).items():
        answer.federated_bundles[domain] = b"".join(ders(path))
    return answer


class Service(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    def FetchX509SVID(self, request, context):
        if ("workload.spiffe.io", "true") not in [(key, value) for key, value in context.invocation_metadata()]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        known = None
        while context.is_active():
            with open(sys.argv[2]) as file:
                text = file.read()
            if text != known:
                known = text
                state = json.loads(text)
                if not state.get("svids"):
                    context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
                yield told(state)
            time.sleep(0.02)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(Service(), server)
server.add_insecure_port(f"unix:{sys.argv[1]}")
server.start()
server.wait_for_termination()

"""A gRPC server that does what its methods are named for. Arguments: PORT, and `failing` for one that cannot.

Messages are bytes: what is tested is the way, not protobuf.
"""

import concurrent.futures
import os
import sys
import threading

import grpc

MOST = 8 << 20
cancelled = 0
tries = {}
changed = threading.Lock()


def unary(request, context):
    metadata = {key: value for key, value in context.invocation_metadata()}
    context.send_initial_metadata((("x-initial", metadata.get("x-ask", "nothing")),))
    context.set_trailing_metadata((("x-trailing", metadata.get("x-ask", "nothing")), ("x-raw-bin", b"\x00\x01\xff")))
    return request


def client_stream(requests, context):
    count = size = 0
    for request in requests:
        count, size = count + 1, size + len(request)
    return b"%d messages, %d bytes" % (count, size)


def server_stream(request, context):
    count, size = map(int, request.split())
    for number in range(count):
        yield bytes([number % 256]) * size


def both(requests, context):
    yield from requests


def fail(request, context):
    context.set_trailing_metadata((("x-why", "told to"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nicht möglich: 100 %")


def fail_late(request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")


def hang(request, context):
    def ended():
        global cancelled
        with changed:
            cancelled += 1
        gone.set()

    gone = threading.Event()
    context.add_callback(ended)
    yield b"begun"
    gone.wait(30)


def flaky(request, context):
    """Fails for each key so often as the request says."""
    key, failures, pushback = request.split()
    with changed:
        tries[key] = tries.get(key, 0) + 1
        number = tries[key]
    if number <= int(failures):
        if pushback != b"none":
            context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback.decode()),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    return b"%d" % number


def left(request, context):
    """Milliseconds that are left of the call's time, as this side sees it."""
    return b"%d" % int(context.time_remaining() * 1000)


def count_cancelled(request, context):
    return b"%d" % cancelled


METHODS = {
    "/test.Way/Unary": grpc.unary_unary_rpc_method_handler(unary),
    "/test.Way/ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "/test.Way/ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "/test.Way/Both": grpc.stream_stream_rpc_method_handler(both),
    "/test.Way/Fail": grpc.unary_unary_rpc_method_handler(fail),
    "/test.Way/FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "/test.Way/Hang": grpc.unary_stream_rpc_method_handler(hang),
    "/test.Way/Flaky": grpc.unary_unary_rpc_method_handler(flaky),
    "/test.Way/Left": grpc.unary_unary_rpc_method_handler(left),
    "/test.Way/Cancelled": grpc.unary_unary_rpc_method_handler(count_cancelled),
}


def cannot(request, context):
    context.abort(grpc.StatusCode.UNAVAILABLE, "out of order")


FAILING = grpc.unary_unary_rpc_method_handler(cannot)


class Methods(grpc.GenericRpcHandler):
    def service(self, details):
        return FAILING if "failing" in sys.argv[2:] else METHODS.get(details.method)


server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(16),
    handlers=(Methods(),),
    options=(
        ("grpc.max_receive_message_length", MOST),
        ("grpc.max_send_message_length", MOST),
        ("grpc.so_reuseport", 0),
        # Pings come as often as the client likes.
        ("grpc.http2.min_ping_interval_without_data_ms", 10),
        ("grpc.http2.max_ping_strikes", 0),
    ),
)
server.add_insecure_port(f"{os.environ['LISTEN_ON']}:{sys.argv[1]}")
server.start()
server.wait_for_termination()

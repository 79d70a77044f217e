"""Scenarios: HTTP/2 and gRPC on one core.

`http2` is the mix that a sidecar sees when only the client speaks HTTP/2; `grpc` is HTTP/2 on both
sides, a small message each way and its status as a trailer.
"""

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, plain, rates
from .process import free_ports

# Few connections with many streams: how HTTP/2 clients talk. 64 requests at once stay within every default
# (pools, nginx's 128 streams), so that no proxy is measured opening connections.
CONNECTIONS, STREAMS = 2, 32
GRPC_PATH = "/bench.Echo/Unary"


def measure_http2(peers, arguments) -> str:
    """HTTP/2 in, HTTP/1.1 out."""
    if peers.h2load is None:
        return "## HTTP/2\n\nh2load is not on this machine.\n"
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        proxies = plain.start_all(stack, peers, "http2", folder, app)
        for kind, (port, _) in proxies.items():
            expect(peers, kind, port, "/", [load.BODY.encode()])
        return rates.table("HTTP/2 in, HTTP/1.1 out, one core", arguments, proxies,
                           load.h2load(peers, folder, CONNECTIONS, STREAMS, "/"),
                           [rates.NOTE.format(what=f"h2load -c {CONNECTIONS} -m {STREAMS}", app="nginx, 1 KiB body")])


def measure_grpc(peers, arguments) -> str:
    """HTTP/2 on both sides with a message of 15 bytes each way and trailers."""
    if peers.h2load is None:
        return "## gRPC\n\nh2load is not on this machine.\n"
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app, grpc=True))
        proxies = plain.start_all(stack, peers, "grpc", folder, app)
        message = folder / "message"
        message.write_bytes(load.GRPC_MESSAGE)
        fields = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        for kind, (port, _) in proxies.items():
            expect(peers, kind, port, GRPC_PATH, [load.GRPC_MESSAGE, b"grpc-status: 0"], *fields, "-d", str(message))
        return rates.table("gRPC unary, one core", arguments, proxies,
                           load.h2load(peers, folder, CONNECTIONS, STREAMS, GRPC_PATH, "-d", str(message), *fields),
                           [rates.NOTE.format(what=f"h2load -c {CONNECTIONS} -m {STREAMS} with framed messages",
                                              app="nginx: a message of 15 bytes and the trailer `grpc-status`"),
                            "nginx and h2load stand for a gRPC server and client that cost next to nothing; real ones "
                            "would be the limit long before any proxy. nginx as a proxy gives every request under way "
                            "an upstream connection of its own."])


def expect(peers, kind: str, port: int, path: str, parts: list[bytes], *more: str) -> None:
    """One exchange through a proxy before it is measured: what came must hold all that the application sent."""
    # Not curl: it takes its leave of a response with a length before the trailers.
    got = subprocess.run([peers.nghttp, "-v", "--no-dep", "-t", "5", *more, f"http://127.0.0.1:{port}{path}"],
                         capture_output=True, check=False).stdout
    for part in [b":status: 200", *parts]:
        if part not in got:
            raise SystemExit(f"bench: through {kind} {part[:40]!r} did not arrive, but:\n{got[-2000:]!r}")

"""Scenario: resident memory with ten thousand idle connections."""

import resource
import socket
import ssl
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from . import load, report
from .certificates import make_certificates
from .peers import able
from .process import free_ports, wait_port

PLAIN_COUNT = 10_000
# Handshakes cost Python a millisecond and a half each; so many tell what one costs in memory.
TLS_COUNT = 2_000
SETTLE_SECONDS = 2
REQUEST = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n"


def measure(peers, arguments) -> str:
    """Once per proxy: memory does not drift as times do."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    rows = []
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        make_certificates(folder)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        secure = able(peers, "mtls")
        for kind, start in able(peers, "many").items():
            report.progress(f"{kind}: {PLAIN_COUNT} connections")
            rest, held, after = memory(start, peers, folder, app, PLAIN_COUNT, lambda raw: raw)
            report.progress(f"{kind}: {TLS_COUNT} connections with mTLS")
            tls_rest, tls_held, _ = memory(secure[kind], peers, folder, app, TLS_COUNT, client(folder).wrap_socket)
            rows.append([kind, f"{rest / 2**20:.1f}", f"{held / 2**20:.1f}", f"{(held - rest) / PLAIN_COUNT / 1024:.1f}",
                         f"{after / 2**20:.1f}", f"{(tls_held - tls_rest) / TLS_COUNT / 1024:.1f}"])
    head = ["proxy", "at rest, MiB", f"{PLAIN_COUNT} idle, MiB", "KiB each", "all closed, MiB", "KiB each, mTLS"]
    return report.table("Memory of idle connections", head, rows, [
        f"Resident memory {SETTLE_SECONDS} s after {PLAIN_COUNT} clients have each had one answer and keep their "
        f"connection, and {SETTLE_SECONDS} s after they have closed it; the last column is from {TLS_COUNT} connections with "
        "client certificates. The kernel's socket buffers are not in it."])


def memory(start, peers, folder: Path, app: int, count: int, wrap) -> tuple[int, int, int]:
    """Resident bytes before, with and after so many connections."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name:
        for file in folder.glob("*.*"):
            if file.suffix in (".pem", ".key", ".both"):
                (Path(name) / file.name).write_bytes(file.read_bytes())
        with start(peers, Path(name), port, app) as process:
            wait_port(port, process)
            time.sleep(SETTLE_SECONDS)
            rest = process.rss_bytes()
            held = [connect(port, wrap) for _ in range(count)]
            time.sleep(SETTLE_SECONDS)
            full = process.rss_bytes()
            for each in held[:: max(1, count // 50)]:
                ask(each)  # None of those looked at was dropped meanwhile.
            for each in held:
                each.close()
            time.sleep(SETTLE_SECONDS)
            return rest, full, process.rss_bytes()


def connect(port: int, wrap) -> socket.socket:
    """A connection that has had one answer."""
    connection = wrap(socket.create_connection(("127.0.0.1", port), timeout=10))
    ask(connection)
    return connection


def ask(connection: socket.socket) -> None:
    """One request and its whole answer, or the end of the run."""
    connection.sendall(REQUEST)
    got = b""
    while not got.endswith(load.BODY.encode()):
        part = connection.recv(65536)
        if not part:
            raise SystemExit(f"bench: the proxy closed an idle connection after {got[:200]!r}")
        got += part


def client(folder: Path) -> ssl.SSLContext:
    """A client that presents its certificate; names are not what is measured."""
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.check_hostname = False
    context.load_cert_chain(folder / "client.pem", folder / "client.key")
    return context

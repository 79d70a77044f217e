"""Scenario: a discovery server and ten thousand sidecars, each a stream over mTLS of its own.

The server (`fleet_server`) runs the product's component with a feed in memory, alone on one core; the sidecars (`fleet`) are as
many of the product's clients in one process on the other.
"""

import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from . import report
from .peers import outrigger as ours
from .process import LOAD_CORE, PROXY_CORE, free_ports

ROOT = Path(__file__).resolve().parents[2]
SIDECARS, FOLLOWED, SERVICES, ENDPOINTS = 10_000, 5, 5_000, 10
DEADLINE = 150


class Lines:
    """A process that is spoken to line by line."""

    def __init__(self, command, core: int):
        self.child = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      preexec_fn=lambda: os.sched_setaffinity(0, {core}))

    def ask(self, line: str) -> list[str]:
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        return self.next()

    def next(self) -> list[str]:
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError("it ended")
        return line.split()

    def until(self, word: str) -> list[str]:
        while True:
            line = self.next()
            if line[0] == word:
                return line

    def rss(self) -> int:
        return int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1]) * 4096

    def end(self) -> None:
        self.child.kill()
        self.child.wait()


def examples() -> tuple[Path, Path]:
    """Builds both programs as the release is built."""
    command = ["cargo", "build", "--release", "--quiet", "-p", "outrigger-discovery", "--example", "fleet_server",
               "-p", "outrigger-follow", "--example", "fleet"]
    subprocess.run(command, cwd=ROOT, check=True)
    found = {path.name: path for path in ROOT.glob("target/*/release/examples/fleet*") if path.suffix == ""}
    return found["fleet_server"], found["fleet"]


def measure(peers, arguments) -> str:
    """Rounds of one change for all, then a restart of the server."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server_program, fleet_program = examples()
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name:
        return inside(peers, arguments, Path(name), server_program, fleet_program)


def inside(peers, arguments, folder: Path, server_program: Path, fleet_program: Path) -> str:
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    serve = lambda: Lines([server_program, folder, address, SERVICES, ENDPOINTS, 1], PROXY_CORE)  # noqa: E731
    server = serve()
    fleet = None
    try:
        empty = int(server.until("ready")[2])
        began = time.monotonic()
        fleet = Lines([fleet_program, folder, address, SIDECARS, FOLLOWED, SERVICES], LOAD_CORE)
        fleet.until("all")
        first = time.monotonic() - began
        changes = []
        for number in range(max(arguments.rounds, 5)):
            report.progress(f"round {number + 1}")
            time.sleep(1)
            changes.append(float(server.ask(str(SIDECARS))[1]))
        full = int(server.ask("")[2])
        small = sidecar(peers, folder, address)
        report.progress("restart")
        server.end()
        fleet.until("some")
        began = time.monotonic()
        server = serve()
        server.until("ready")
        up = time.monotonic() - began
        fleet.until("all")
        again = time.monotonic() - began
    finally:
        server.end()
        if fleet:
            fleet.end()
    each = (full - empty) / SIDECARS
    rows = [
        ["one endpoint changed, acknowledged by all", f"{1000 * report.median(changes):.0f} ms ({report.spread(changes)})"],
        ["server memory for a stream", f"{each / 1024:.1f} KiB"],
        [f"server with {SERVICES:,} services and {SERVICES * ENDPOINTS:,} endpoints, no stream", f"{empty / 2**20:.0f} MiB"],
        ["the same with all streams", f"{full / 2**20:.0f} MiB"],
        ["all connected, from nothing", f"{first:.1f} s"],
        ["all connected again after the server was killed", f"{again:.1f} s, of which {up:.1f} s until it served"],
        ["a sidecar that uses three services", f"{small / 2**20:.1f} MiB"],
    ]
    return report.table(f"Discovery for {SIDECARS:,} sidecars, the server on one core", ["what", "measured"], rows, [
        f"Each sidecar follows {FOLLOWED} services, one of which all follow; mTLS on each stream. A change is timed from the feed to the "
        "last acknowledgement. Reconnecting includes the clients' own waits, spread by chance. The 10,000 clients share core 1, and "
        "are as busy as the server."])


def sidecar(peers, folder: Path, address: str) -> int:
    """Resident bytes of a whole sidecar that follows three services."""
    [port] = free_ports(1)
    clusters = "".join(f"    - {{ name: s{n}, discovery: {{ service: 's{n}.n{n % 50}.svc.cluster.local:80' }} }}\n" for n in (1, 2, 3))
    body = (f"identity:\n  trustDomain: bench.test\n  development: {{ directory: {folder}, namespace: n, serviceAccount: one }}\n"
            f"proxy:\n  discovery: {{ servers: ['{address}'], tls: {{ spiffeIds: ['spiffe://bench.test/ns/n/sa/controller'] }} }}\n"
            f"  listeners:\n    - name: out\n      direction: outbound\n      address: 127.0.0.1:{port}\n      routes:\n"
            + "".join(f"      - {{ name: r{n}, hostnames: [s{n}.test], backendRefs: [{{ name: s{n} }}] }}\n" for n in (1, 2, 3))
            + f"  clusters:\n{clusters}")
    (folder / "one").mkdir(exist_ok=True)
    process = ours.start(peers, folder / "one", "sidecar", body, cores=LOAD_CORE)
    try:
        time.sleep(5)
        if process.child.poll() is not None:
            raise RuntimeError(process.log.read_text()[-2000:])
        return process.rss_bytes()
    finally:
        process.stop()

"""Scenario: the controller's discovery and ten thousand sidecars, each a stream over mTLS of its own.

The controller is the shipped executable, alone on one core; it follows the services of a real API server. The sidecars (`fleet`) are as
many of the product's clients in one process on the other core, which they share with the API server.
"""

import os
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from . import apiserver, machine, report
from . import controller as control
from .apiserver import ApiServer
from .process import LOAD_CORE, cpu_seconds

SIDECARS, FOLLOWED, SERVICES, ENDPOINTS = 10_000, 5, 5_000, 10
SETTLE_SECONDS = 5
PATIENCE = 60
FIRST_ASKED, ASKED_EVERY = 0.2, 0.02
ACKNOWLEDGED = 'outrigger_discovery_acknowledgements_total{type="endpoints",result="ack"}'


class Fleet:
    """Sidecars in one process, which says a line whenever all of them are connected and know what they follow, or no longer."""

    def __init__(self, program: Path, folder: Path, discovery: int):
        command = [program, folder, f"127.0.0.1:{discovery}", SIDECARS, FOLLOWED, SERVICES]
        self.child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True,
                                      preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE}))

    def until(self, word: str) -> list[str]:
        while True:
            line = self.child.stdout.readline().split()
            if not line:
                raise RuntimeError("the fleet ended")
            if line[0] == word:
                return line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()


def measure(peers, arguments) -> str:
    """Rounds of one change for all, then a restart of the controller."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    program = machine.example("outrigger-follow", "fleet")
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ApiServer(Path(name)) as api:
        report.progress(f"making {SERVICES:,} services")
        control.prepare(api)
        apiserver.services(api, SERVICES, ENDPOINTS)
        api.pin()
        return inside(peers, arguments, Path(name), api, program)


def inside(peers, arguments, folder: Path, api: ApiServer, program: Path) -> str:
    controller = control.Controller(peers, folder, api, ("discovery",))
    try:
        controller.wait_ready()
        time.sleep(SETTLE_SECONDS)
        empty = controller.process.rss_bytes()
        began = time.monotonic()
        with Fleet(program, folder, controller.discovery) as fleet:
            fleet.until("all")
            first = time.monotonic() - began
            time.sleep(SETTLE_SECONDS)
            full = controller.process.rss_bytes()
            changes, busy, clients = [], [], []
            for number in range(max(arguments.rounds, 5)):
                report.progress(f"round {number + 1}")
                time.sleep(1)
                cpu, of_clients = controller.process.cpu_seconds(), cpu_seconds(fleet.child.pid)
                changes.append(change(api, controller, number % 2 == 1))
                busy.append(controller.process.cpu_seconds() - cpu)
                clients.append(cpu_seconds(fleet.child.pid) - of_clients)
            changed = controller.process.rss_bytes()
            report.progress("restart")
            os.kill(controller.process.child.pid, signal.SIGKILL)
            controller.process.child.wait()
            began = time.monotonic()
            controller.again()
            fleet.until("some")
            up = controller.wait_ready()
            line = fleet.until("all")
            again = time.monotonic() - began
            tries = int(line[2])
    finally:
        controller.process.stop()
    each = lambda bytes_: f"{(bytes_ - empty) / SIDECARS / 1e3:.1f} KB"  # noqa: E731
    rows = [
        ["one endpoint changed, acknowledged by all", f"{1000 * report.median(changes):.0f} ms ({report.spread(changes)})", "500 ms"],
        ["the controller's processor time for it", f"{1000 * report.median(busy):.0f} ms", ""],
        ["the clients' processor time for it", f"{1000 * report.median(clients):.0f} ms", ""],
        ["the controller's memory for a stream", f"{each(full)}; after the changes {each(changed)}", "40 KB"],
        [f"with {SERVICES:,} services and {SERVICES * ENDPOINTS:,} endpoints, no stream", f"{empty / 1e6:.0f} MB", "400 MB"],
        ["the same with all streams", f"{changed / 1e6:.0f} MB", ""],
        ["all connected, from nothing", f"{first:.1f} s", ""],
        ["all connected again after the controller was killed", f"{again:.1f} s, of which {up:.1f} s until it served; {tries - SIDECARS} lost on the way", "30 s, 0"],
    ]
    return report.table(f"Discovery for {SIDECARS:,} sidecars, the controller on one core", ["what", "measured", "goal"], rows, [
        f"Each sidecar follows {FOLLOWED} services, one of which all follow; mTLS on each stream. A change is timed from before it is sent to the API server until the "
        "controller has counted the last acknowledgement (asked every 20 ms, for the first time after 200). Reconnecting includes the clients' own waits, spread by chance. The clients and the API "
        "server share core 1."])


def change(api: ApiServer, controller, ready: bool) -> float:
    """Changes an endpoint of the service that all follow; seconds until all have acknowledged."""
    before = controller.metric(ACKNOWLEDGED)
    began = time.monotonic()
    slice_of = apiserver.slice_of(0, ENDPOINTS, ready=ready)
    path = f"/apis/discovery.k8s.io/v1/namespaces/n0/endpointslices/{slice_of['metadata']['name']}"
    api.ask("PATCH", path, {"endpoints": slice_of["endpoints"]}, "application/merge-patch+json")
    # To ask takes time of the very cores that are measured: not before it can have been done, and not often.
    time.sleep(FIRST_ASKED)
    while controller.metric(ACKNOWLEDGED) < before + SIDECARS:
        if time.monotonic() - began > PATIENCE:
            raise RuntimeError("not all have acknowledged")
        time.sleep(ASKED_EVERY)
    return time.monotonic() - began

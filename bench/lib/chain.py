"""Scenario: application -> sidecar -> mTLS -> sidecar -> application, both sidecars on one core."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, rates
from .certificates import make_certificates
from .peers import able
from .process import free_ports, wait_port


def measure(peers, arguments) -> str:
    """Interleaves all chains round by round."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        return rates.table("Two sidecars, mTLS between them, one core for both", arguments,
                           start_all(stack, peers, folder, app), load.wrk(peers, arguments.connections),
                           [rates.NOTE.format(what="wrk", app="nginx, 1 KiB body")])


def start_all(stack: ExitStack, peers, folder: Path, app: int) -> dict:
    """Starts every chain; their outer ports and processes by name."""
    make_certificates(folder)
    proxies = {}
    for kind, start in able(peers, "chain").items():
        outer, inner = free_ports(2)
        processes = [stack.enter_context(each) for each in start(peers, folder, outer, inner, app)]
        for port, process in ((inner, processes[-1]), (outer, processes[0])):
            wait_port(port, process)
        proxies[kind] = (outer, processes)
    return proxies

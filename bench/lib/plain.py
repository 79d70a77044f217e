"""Scenario: a plain HTTP/1.1 proxy on one core, metrics on, access log off."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, rates
from .peers import able
from .process import free_ports, wait_port


def measure(peers, arguments) -> str:
    """Interleaves all proxies round by round."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        return rates.table("Plain HTTP/1.1 proxy, one core", arguments, start_all(stack, peers, "plain", folder, app),
                           load.wrk(peers, arguments.connections),
                           [rates.NOTE.format(what="wrk", app="nginx, 1 KiB body")])


def start_all(stack: ExitStack, peers, job: str, folder: Path, app: int, only: str | None = None) -> dict:
    """Starts every proxy that can do a job, or only one; their ports and processes by name."""
    proxies = {}
    for kind, start in able(peers, job).items():
        if only not in (None, kind):
            continue
        [port] = free_ports(1)
        process = stack.enter_context(start(peers, folder, port, app))
        wait_port(port, process)
        proxies[kind] = (port, [process])
    return proxies

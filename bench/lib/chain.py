"""Scenario: application -> sidecar -> mTLS -> sidecar -> application, both sidecars on one core."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import configs, load, plain
from .certificates import make_certificates
from .process import free_ports, wait_port


def measure(peers, arguments) -> str:
    """Interleaves all chains round by round."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        make_certificates(folder)
        app, *ports = free_ports(12)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        proxies = {}
        for kind, start in configs.CHAIN.items():
            if getattr(peers, kind) is not None:
                outer, inner = ports.pop(), ports.pop()
                processes = [stack.enter_context(each) for each in start(peers, folder, outer, inner, app)]
                for port, process in ((inner, processes[-1]), (outer, processes[0])):
                    wait_port(port, process)
                proxies[kind] = (outer, processes)
        return plain.table("Two sidecars, mTLS between them, one core for both", peers, arguments, proxies)

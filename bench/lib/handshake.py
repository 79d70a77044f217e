"""Scenario: a new TLS connection for every request, client certificates required."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, plain, rates
from .certificates import make_certificates
from .process import free_ports


def measure(peers, arguments) -> str:
    """Interleaves all proxies round by round."""
    if peers.ab is None:
        return "## New TLS connection per request\n\nab (apache2-utils) is not on this machine.\n"
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        make_certificates(folder)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        return rates.table("New TLS connection per request, one core", arguments,
                           plain.start_all(stack, peers, "mtls", folder, app), load.ab(peers, folder, arguments.connections),
                           [rates.NOTE.format(what="ab", app="nginx, 1 KiB body"),
                            "TLS 1.3, P-256 certificates on both sides. All send session tickets, as is their default, "
                            "and ab never comes back with one: each handshake is whole. A client's half costs more than "
                            "a server's, so the load is the limit; its CPU ÷ ours is the ratio to quote."])

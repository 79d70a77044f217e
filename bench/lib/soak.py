"""Scenario: resident memory over millions of requests, off unless `--soak` says how many.

The load changes hands every few seconds: HTTP/1.1 with keep-alive, HTTP/2, and a new connection for
every request, all on one listener, because what leaks is seldom on the path that is loaded most.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import http2, load, plain, report
from .process import free_ports

CHUNK_SECONDS = {"keep-alive": 10, "HTTP/2": 5, "new connections": 2}


def measure(peers, arguments) -> str:
    """Loads until the number is reached, and looks at the memory after each change."""
    goal = 1_000_000 * (arguments.soak or 10)
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        [(port, [process])] = plain.start_all(stack, peers, "plain", folder, app, only="outrigger").values()
        drivers = {"keep-alive": load.wrk(peers, arguments.connections),
                   "new connections": load.wrk(peers, arguments.connections, "-H", "Connection: close")}
        if peers.h2load is not None:
            drivers["HTTP/2"] = load.h2load(peers, folder, http2.CONNECTIONS, http2.STREAMS, "/")
        fresh, done, errors, seen = process.rss_bytes(), 0, 0, []
        while done < goal:
            for what, drive in drivers.items():
                got = drive(port, CHUNK_SECONDS[what])
                done, errors = done + got.requests, errors + got.errors
            seen.append((done, process.rss_bytes()))
            report.progress(f"{done / 1e6:.1f} of {goal / 1e6:.0f} million requests, {seen[-1][1] / 2**20:.1f} MiB")
    tenth = max(1, len(seen) // 10)
    first, last = (report.median(rss for _, rss in part) for part in (seen[:tenth], seen[-tenth:]))
    rows = [[f"{done / 1e6:.1f}", f"{fresh / 2**20:.1f}", f"{first / 2**20:.1f}", f"{last / 2**20:.1f}",
             f"{max(rss for _, rss in seen) / 2**20:.1f}", f"{(last - first) / max(done / 1e6, 1) / 1024:.1f}", str(errors)]]
    head = ["million requests", "fresh, MiB", "first tenth", "last tenth", "highest", "growth, KiB/million", "errors"]
    return report.table("Soak", head, rows, ["Resident memory of Outrigger, one worker, while HTTP/1.1 with keep-alive, "
                                             "HTTP/2 and a connection per request take turns on one listener."])

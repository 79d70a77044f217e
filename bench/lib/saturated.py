"""Scenario: many more clients than the proxy's own core can serve, with `maxRequests` and without.

What is short here is the proxy's processor, not the application: two sidecars with mTLS share core 0 and are its
only load. Refusing costs about half of serving, so a limit can only cost goodput; without one the requests wait in
their connections' sockets.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, report
from .certificates import make_certificates, spiffe_id
from .peers import outrigger as ours
from .process import free_ports, wait_port

FEW, MANY, LIMIT = 32, 2000, 64


def measure(peers, arguments) -> str:
    """The peak with few clients, then many, interleaved round by round."""
    limits = {"no limit": "", f"maxRequests: {LIMIT}": f"      limits: {{ maxRequests: {LIMIT} }}\n"}
    taken = {kind: [] for kind in limits}
    for number in range(arguments.rounds):
        for kind, more in limits.items():
            report.progress(f"round {number + 1}/{arguments.rounds}: {kind}")
            taken[kind].append(once(peers, more, arguments.seconds))
    rows = []
    for kind, rounds in taken.items():
        peak, good, refused, p50, p99, busy, rss = (list(column) for column in zip(*rounds))
        share = report.median(mine / most for mine, most in zip(good, peak))
        rows.append([kind, f"{report.median(peak):.0f}", f"{report.median(good):.0f}", f"{100 * share:.0f} %",
                     f"{report.median(refused):.0f}", f"{report.median(p50):.0f}", f"{report.median(p99):.0f}",
                     f"{100 * report.median(busy):.0f} %", f"{max(rss):.1f}"])
    head = ["limit", f"{FEW} clients, answers/s", f"{MANY} clients, good/s", "goodput", "refused/s", "p50 ms", "p99 ms",
            "core busy", "RSS MiB"]
    return report.table("Goodput when the proxy's core is what is short", head, rows, [
        f"Two sidecars with mTLS between them on core 0; wrk, closed loop, and the application on core 1. Goodput is what "
        f"{MANY} clients get answered beside what {FEW} do; the times and the memory, of both sidecars, are those of {MANY}."])


def once(peers, more: str, seconds: float) -> tuple[float, ...]:
    """One round, with processes of its own."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        make_certificates(folder)
        app, outer, inner = free_ports(3)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        tls = f"      tls: {{ spiffeIds: ['{spiffe_id('server')}'] }}\n"
        body = ours.identity(folder, "client") + ours.section(
            ours.listener(outer, "server", "outbound", more), ours.cluster("server", inner, tls))
        proxies = [stack.enter_context(ours.mtls(peers, folder, inner, app)),
                   stack.enter_context(ours.start(peers, folder, "outrigger-client", body))]
        wait_port(inner, proxies[0])
        wait_port(outer, proxies[1])
        few = load.measure(load.wrk(peers, FEW), outer, proxies, seconds)
        many = load.measure(load.wrk(peers, MANY), outer, proxies, max(seconds, 4))
        bad = many.rate * many.errors / max(many.requests, 1)
        return few.rate, many.rate - bad, bad, many.p50_ms, many.p99_ms, many.busy, many.rss / 2**20

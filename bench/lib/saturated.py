"""Scenario: twice the load that the proxies' own core can bear: two sidecars with mTLS, and their peers.

What is short here is the proxies' processor, not the application. Many connections, each a client that gives up after a
second (`flood.rs`): first the most that they get answered, at whatever rate, then twice that rate. What a few connections
get is told beside it: a request costs every proxy more when its connection has not been touched for a while.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, machine, report
from .certificates import make_certificates, spiffe_id
from .peers import envoy, haproxy, nginx, outrigger as ours
from .process import LOAD_CORE, free_ports, wait_port

SOURCE = Path(__file__).with_name("flood.rs")
FEW, MANY, LIMIT = 32, 2000, 64
# Rates of the open loop that may be the peak, beside the closed loop's.
RISING = (0.9, 1.2)


def measure(peers, arguments) -> str:
    """The peak, then twice as much, interleaved round by round."""
    program = machine.compiled(SOURCE)
    kinds = {"outrigger": ours.chain, f"outrigger, maxRequests: {LIMIT}": limited}
    kinds |= {name: module.chain for name, module in (("envoy", envoy), ("nginx", nginx), ("haproxy", haproxy))
              if getattr(peers, name) is not None}
    taken = {kind: [] for kind in kinds}
    for number in range(arguments.rounds):
        for kind, chain in kinds.items():
            report.progress(f"round {number + 1}/{arguments.rounds}: {kind}")
            taken[kind].append(once(peers, program, chain, max(arguments.seconds, 3)))
    rows = []
    for kind, rounds in taken.items():
        few, closed, peak, good, refused, p99, rss = (list(column) for column in zip(*rounds))
        share = report.median(mine / max(most, 1) for mine, most in zip(good, peak))
        rows.append([kind, f"{report.median(few):.0f}", f"{report.median(closed):.0f}", f"{report.median(peak):.0f}",
                     f"{report.median(good):.0f}", f"{100 * share:.0f} %", f"{report.median(refused):.0f}",
                     f"{report.median(p99):.0f}", f"{max(rss):.1f}"])
    head = ["proxy", f"{FEW} clients, closed loop", f"{MANY}, closed loop", f"{MANY}, peak/s", "good/s at 2×", "goodput",
            "refused/s", "p99 of the good, ms", "RSS MiB"]
    return report.table("Goodput when the proxy's core is what is short", head, rows, [
        f"Two sidecars with mTLS between them on core 0; load (`flood.rs`) and application on core 1. The peak is the most that "
        f"{MANY} clients get answered within a second, in a closed loop or at {', '.join(map(str, RISING))} times its rate in an "
        "open one; then come twice as many. Goodput is the answers within a "
        "second then, beside the peak. RSS is of both sidecars, at the end."])


def limited(peers, folder, outer, inner, app):
    """Our chain, whose first sidecar refuses all but a few."""
    tls = f"      tls: {{ spiffeIds: ['{spiffe_id('server')}'] }}\n"
    limits = f"      limits: {{ maxRequests: {LIMIT} }}\n"
    client = ours.identity(folder, "client") + ours.section(
        ours.listener(outer, "server", "outbound", limits), ours.cluster("server", inner, tls))
    return [ours.start(peers, folder, "outrigger-client", client), ours.mtls(peers, folder, inner, app)]


def once(peers, program: Path, chain, seconds: float) -> tuple[float, ...]:
    """One round, with processes of its own."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        make_certificates(folder)
        app, outer, inner = free_ports(3)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        proxies = [stack.enter_context(process) for process in chain(peers, folder, outer, inner, app)]
        wait_port(inner, proxies[1])
        wait_port(outer, proxies[0])
        few = flood(program, outer, 0, FEW, seconds)
        closed = flood(program, outer, 0, MANY, seconds)[0]
        peak = max(closed, *(flood(program, outer, factor * closed, MANY, seconds)[0] for factor in RISING))
        good, refused, p99 = flood(program, outer, 2 * peak, MANY, seconds)
        return few[0], closed, peak, good, refused, p99, sum(proxy.rss_bytes() for proxy in proxies) / 2**20


def flood(program: Path, port: int, rate: float, connections: int, seconds: float) -> tuple[float, float, float]:
    """Good answers and refusals a second, and the p99 of the good in milliseconds; at a rate of 0 in a closed loop."""
    out = load.run(["taskset", "-c", LOAD_CORE, program, f"127.0.0.1:{port}", max(rate, 1) if rate else 0, connections, seconds])
    _, good, refused, _, _, p99 = (float(word) for word in out.split())
    return good / seconds, refused / seconds, p99 / 1e3

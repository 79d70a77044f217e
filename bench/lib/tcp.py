"""Scenario: bytes per second of plain TCP through one core."""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, plain, report
from .process import LOAD_CORE, Process, free_ports, wait_port

BLAST = Path(__file__).with_name("blast.py")
CONNECTIONS = 4


def measure(peers, arguments) -> str:
    """Interleaves all proxies round by round, and the way without a proxy."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app] = free_ports(1)
        sink = stack.enter_context(Process([sys.executable, BLAST, "sink", app], LOAD_CORE, folder / "sink.log"))
        wait_port(app, sink)
        proxies = plain.start_all(stack, peers, "tcp", folder, app)
        targets = {"none (direct)": (app, [])} | proxies
        rounds = {kind: [] for kind in targets}
        for number in range(arguments.rounds):
            for kind, (port, processes) in targets.items():
                report.progress(f"round {number + 1}/{arguments.rounds}: {kind}")
                rounds[kind].append(once(port, processes, arguments.seconds))
    ours = rounds["outrigger"]
    rows = []
    for kind, taken in rounds.items():
        rates, costs, busy, rss, broken = zip(*taken)
        first = kind in ("outrigger", "none (direct)")
        rows.append([
            kind, f"{report.median(rates):.2f}", report.spread(rates),
            "-" if first else f"{report.median([mine[0] / rate for mine, rate in zip(ours, rates)]):.2f}",
            f"{report.median(costs):.0f}" if kind in proxies else "-",
            "-" if first else f"{report.median([cost / mine[1] for mine, cost in zip(ours, costs)]):.2f}",
            f"{100 * report.median(busy):.0f} %" if kind in proxies else "-",
            f"{report.median(rss) / 2**20:.1f}" if kind in proxies else "-", str(sum(broken)),
        ])
    head = ["proxy", "GB/s", "spread", "ours ÷ its rate", "CPU ms/GB", "its CPU ÷ ours", "core busy", "RSS MiB", "broken"]
    return report.table("TCP, one core", head, rows, [
        f"{CONNECTIONS} connections send 256 KiB at a time, one way, towards the application; sender and receiver share "
        "core 1, the proxies alone have core 0. The receiver lets the kernel drop the bytes uncopied, so that the core of "
        "the load is not the limit sooner than the proxy's. `broken` connections lost bytes or the half-close. HAProxy has "
        "`option splice-auto`."])


def once(port: int, processes: list[Process], seconds: float) -> tuple[float, float, float, int, int]:
    """GB/s, CPU milliseconds per GB, share of the core, resident bytes, connections that lost something."""
    cpu = sum(process.cpu_seconds() for process in processes)
    out = load.run(["taskset", "-c", LOAD_CORE, sys.executable, BLAST, "send", port, CONNECTIONS, seconds])
    cpu = sum(process.cpu_seconds() for process in processes) - cpu
    sent, wall, broken = (float(word) for word in out.split())
    return (sent / wall / 1e9, 1e3 * cpu / (sent / 1e9), cpu / wall, sum(each.rss_bytes() for each in processes), int(broken))

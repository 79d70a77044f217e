"""Scenario: twice the requests that an application can answer: by default, with a limit, and with none.

The application works on a few requests at once and lets the others wait. Clients give up after a second, as
users do, so an answer that comes later was worked for in vain.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, machine, report
from .peers import outrigger as ours
from .process import LOAD_CORE, Process, free_ports, wait_port

SOURCE = Path(__file__).with_name("overload.rs")
SLOTS, MILLISECONDS = 8, 20
# More than the application can answer within a client's patience: without a limit they all wait.
CONNECTIONS = 1500
# In so many seconds an overload is found out, and what was begun in vain is worked off.
FIRST = 4


def measure(peers, arguments) -> str:
    """Peak in a closed loop, then twice as much in an open one, interleaved round by round."""
    program = machine.compiled(SOURCE)
    limits = {"by default": "", "shedOverload: false": "shedOverload: false", f"maxRequests: {4 * SLOTS}": f"maxRequests: {4 * SLOTS}"}
    taken = {kind: [] for kind in limits}
    for number in range(arguments.rounds):
        for kind, limit in limits.items():
            report.progress(f"round {number + 1}/{arguments.rounds}: {kind}")
            taken[kind].append(once(peers, program, limit, max(arguments.seconds, 4)))
    rows = []
    for kind, rounds in taken.items():
        peak, first, good, refused, lost, p99, rss = (list(column) for column in zip(*rounds))
        share = report.median(mine / most for mine, most in zip(good, peak))
        begun = report.median(mine / most for mine, most in zip(first, peak))
        rows.append([kind, f"{report.median(peak):.0f}", f"{100 * begun:.0f} %", f"{report.median(good):.0f}", f"{100 * share:.0f} %",
                     f"{report.median(refused):.0f}", f"{report.median(lost):.0f}", f"{report.median(p99):.0f}", f"{max(rss):.1f}"])
    head = ["limit", "peak, answers/s", f"first {FIRST} s at 2×", "then, good answers/s", "goodput", "refused/s", "given up/s", "p99 of the good, ms", "RSS, MiB"]
    return report.table("Goodput at twice the load an application can bear", head, rows, [
        f"The application works on {SLOTS} requests at once, {MILLISECONDS} ms each. Peak: {2 * SLOTS} clients, one request "
        f"after the other. Then twice that rate in an open loop over {CONNECTIONS} connections (`overload.rs`); good is a "
        "200 within a second of the moment it was due."])


def once(peers, program: Path, limit: str, seconds: float) -> tuple[float, ...]:
    """One round. An application of its own, for what is left over of a load may keep one busy for long."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        app, port = free_ports(2)
        behind = stack.enter_context(Process([program, "app", app, SLOTS, MILLISECONDS], LOAD_CORE, folder / "app.log"))
        wait_port(app, behind)
        more = f"      limits: {{ {limit} }}\n" if limit else ""
        body = ours.section(ours.listener(port, "app", "inbound", more), ours.cluster("app", app))
        process = stack.enter_context(ours.start(peers, folder, "outrigger", body))
        wait_port(port, process)
        peak = run(program, port, 0, 2 * SLOTS, seconds)
        rate = 2 * peak[1] / seconds
        first = run(program, port, rate, CONNECTIONS, FIRST)
        over = run(program, port, rate, CONNECTIONS, 2 * seconds)
        return (peak[1] / seconds, first[1] / FIRST, over[1] / seconds / 2, over[2] / seconds / 2, over[3] / seconds / 2, over[4] / 1e3,
                process.rss_bytes() / 2**20)


def run(program: Path, port: int, rate: float, connections: int, seconds: float) -> list[float]:
    """One load: sent, good, refused, lost, p99."""
    out = load.run(["taskset", "-c", LOAD_CORE, program, "load", f"127.0.0.1:{port}", rate, connections, seconds])
    return [float(word) for word in out.split()]

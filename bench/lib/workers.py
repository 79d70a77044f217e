"""Scenario: what a second worker on a second core brings.

The machine has two cores and the load needs some of both, so requests per second cannot show it.
What can be seen is whether the workers get in one another's way (locks, shared cache lines): one
process with two workers is compared with two processes of one worker each, which share nothing, on
the same port under the same load. What sharing costs in CPU time is missing from a factor of two.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, report
from .peers import outrigger
from .process import Process, free_ports, wait_port

CORES = {0, 1}
CONNECTIONS = 128
# Processes, and workers of each.
CASES = {"one worker": (1, 1), "two workers": (1, 2), "two processes": (2, 1)}


def measure(peers, arguments) -> str:
    """All cases in turn, round by round."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app, *ports] = free_ports(1 + len(CASES))
        stack.enter_context(load.upstream(peers.nginx, folder, app, cores=CORES))
        drive = load.wrk(peers, CONNECTIONS, cores="0,1")
        started = {}
        for (case, (processes, workers)), port in zip(CASES.items(), ports):
            # Listeners have SO_REUSEPORT, so that two processes can have one port as two workers do.
            started[case] = [stack.enter_context(outrigger.plain(peers, place(folder, f"{port}-{number}"), port, app, workers, CORES))
                             for number in range(processes)]
            for process in started[case]:
                wait_port(port, process)
        rounds = {case: [] for case in CASES}
        for number in range(arguments.rounds):
            for (case, processes), port in zip(started.items(), ports):
                report.progress(f"round {number + 1}/{arguments.rounds}: {case}")
                before = threads(processes)
                got = load.measure(drive, port, processes, arguments.seconds)
                spent = [now - before.get(thread, 0) for thread, now in threads(processes).items()]
                rounds[case].append((got, max(spent) / max(sum(spent), 0.01)))
    nothing_shared = [got.cpu_us for got, _ in rounds["two processes"]]
    rows = []
    for case, taken in rounds.items():
        ratios = [2 * apart / got.cpu_us for apart, (got, _) in zip(nothing_shared, taken)]
        rows.append([
            case, f"{report.median(got.cpu_us for got, _ in taken):.1f}", report.spread([got.cpu_us for got, _ in taken]),
            f"{report.median(ratios):.2f}" if case == "two workers" else "-",
            f"{100 * report.median(share for _, share in taken):.0f} %",
            f"{report.median(got.rate for got, _ in taken):.0f}", str(sum(got.errors for got, _ in taken)),
        ])
    head = ["Outrigger", "CPU µs/request", "spread", "two ÷ one, by CPU", "busiest worker's share", "requests/s", "errors"]
    return report.table("Two workers on two cores", head, rows, [
        f"wrk ({CONNECTIONS} connections), the application and the proxy share both cores, so the rates only tell how the "
        "machine was shared out. `two ÷ one, by CPU` is 2 × CPU per request of two processes, which share nothing, ÷ that of "
        "two workers: how much more two cores carry than one, as far as the workers themselves are concerned."])


def place(folder: Path, name: str) -> Path:
    """A folder of its own for one process."""
    (folder / name).mkdir()
    return folder / name


def threads(processes: list[Process]) -> dict[str, float]:
    """CPU time of each thread of all processes."""
    return {thread: spent for process in processes for thread, spent in process.thread_seconds().items()}

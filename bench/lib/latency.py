"""Scenario: what a proxy adds to the latency of an application at a fixed rate.

Open loop: requests go out at their moments whatever the answers do. `added` is the proxy's quantile
minus the one of the same load sent directly to the application, in the same slice of time; told is the median slice.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import chain, load, machine, plain, report
from .process import LOAD_CORE, free_ports

SOURCE = Path(__file__).with_name("steady.rs")
PLAIN_RATE = 2_000
# About half of what Envoy's chain carries on one core here: the same load for all, and none is overloaded.
CHAIN_RATE = 4_000
CONNECTIONS = 32
# So long is one look at a proxy: a thousand requests, ten of them beyond the p99. A machine's bad moments last longer, so
# they spoil some looks, and the median over many of them tells of the others.
SLICE = 0.5


def measure(peers, arguments) -> str:
    """One table for plain proxies, one for chains."""
    steady = machine.compiled(SOURCE)
    tables = []
    for title, rate, start_all in (
        ("Added latency at a fixed rate, plain HTTP/1.1", PLAIN_RATE, lambda *rest: plain.start_all(*rest[:2], "plain", *rest[2:])),
        ("Added latency at a fixed rate, two sidecars with mTLS", CHAIN_RATE, chain.start_all),
    ):
        with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
            folder = Path(name)
            [app] = free_ports(1)
            stack.enter_context(load.upstream(peers.nginx, folder, app))
            proxies = start_all(stack, peers, folder, app)
            targets = {"none (direct)": app} | {kind: port for kind, (port, _) in proxies.items()}
            tables.append(table(steady, title, rate, arguments, targets))
    return "\n".join(tables)


def table(steady: Path, title: str, rate: int, arguments, targets: dict[str, int]) -> str:
    """Interleaves all targets slice by slice."""
    rounds = {kind: [] for kind in targets}
    slices = arguments.rounds * max(1, round(arguments.seconds / SLICE))
    for number in range(slices):
        report.progress(f"slice {number + 1}/{slices}")
        for kind, port in targets.items():
            out = load.run(["taskset", "-c", LOAD_CORE, steady, f"127.0.0.1:{port}", rate, CONNECTIONS, SLICE])
            rounds[kind].append([float(word) for word in out.split()])
    direct, ours = rounds["none (direct)"], rounds["outrigger"]
    rows = []
    for kind, taken in rounds.items():
        requests, errors, late, p50, p99, _ = (list(column) for column in zip(*taken))
        added = [mine[4] - base[4] for mine, base in zip(taken, direct)]
        ours_added = report.median([mine[4] - base[4] for mine, base in zip(ours, direct)])
        proxied = kind != "none (direct)"
        rows.append([
            kind, f"{report.median(p50):.0f}", f"{report.median(p99):.0f}", report.quartiles(p99),
            f"{report.median([mine[3] - base[3] for mine, base in zip(taken, direct)]):.0f}" if proxied else "-",
            f"{report.median(added):.0f}" if proxied else "-",
            "-" if not proxied else "1" if kind == "outrigger" else f"{report.median(added) / max(ours_added, 1):.2f}",
            f"{100 * sum(late) / max(sum(requests), 1):.2f} %", f"{sum(errors):.0f}",
        ])
    head = ["proxy", "p50 µs", "p99 µs", "its quartiles", "added p50 µs", "added p99 µs", "its added p99 ÷ ours", "late", "errors"]
    return report.table(title, head, rows, [
        f"{rate} requests/s, evenly spread over {CONNECTIONS} connections, each timed from the moment it was due "
        f"(`steady.rs`); medians of {slices} slices of {SLICE} s, all proxies in turn; load and application share core 1, "
        "the proxies alone have core 0. `late` went out over 1 ms after that moment: more than a few in a hundred means a busy "
        "machine, whose figures are not worth quoting."])

"""Scenario: a plain HTTP/1.1 proxy on one core, metrics on, access log off."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import configs, load, report
from .process import free_ports, wait_port


def measure(peers, arguments) -> str:
    """Interleaves all proxies round by round."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        app, *ports = free_ports(8)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        proxies = {}
        for kind, start in configs.PLAIN.items():
            if getattr(peers, kind) is not None:
                port = ports.pop()
                process = stack.enter_context(start(peers, folder, port, app))
                wait_port(port, process)
                proxies[kind] = (port, [process])
        return table("Plain HTTP/1.1 proxy, one core", peers, arguments, proxies)


def table(title: str, peers, arguments, proxies: dict) -> str:
    """Loads each proxy in turn and prints medians, Outrigger first."""
    rounds = {kind: [] for kind in proxies}
    for number in range(arguments.rounds):
        for kind, (port, processes) in proxies.items():
            report.progress(f"round {number + 1}/{arguments.rounds}: {kind}")
            rounds[kind].append(load.measure(peers.wrk, port, processes, arguments.seconds, arguments.connections))
    ours = rounds["outrigger"]
    rows = []
    for kind, taken in rounds.items():
        ratios = [mine.rate / other.rate for mine, other in zip(ours, taken)]
        cpu_ratios = [other.cpu_us / mine.cpu_us for mine, other in zip(ours, taken)]
        of = lambda what: report.median(getattr(each, what) for each in taken)  # noqa: E731
        rows.append([
            kind, f"{of('rate'):.0f}", report.spread([each.rate for each in taken]),
            "1" if kind == "outrigger" else f"{report.median(ratios):.2f}", f"{of('cpu_us'):.1f}",
            "1" if kind == "outrigger" else f"{report.median(cpu_ratios):.2f}", f"{100 * of('busy'):.0f} %",
            f"{of('p50_ms'):.2f}", f"{of('p99_ms'):.2f}", f"{of('rss') / 2**20:.1f}",
            str(sum(each.errors for each in taken)),
        ])
    head = ["proxy", "requests/s", "spread", "ours ÷ its rate", "CPU µs/request", "its CPU ÷ ours", "core busy",
            "p50 ms", "p99 ms", "RSS MiB", "errors"]
    notes = ["Load: wrk and the application (nginx, 1 KiB body) share core 1; the proxies alone have core 0. "
             "A core that is not ~100 % busy means the load, not the proxy, was the limit: compare CPU per request then."]
    return report.table(title, head, rows, notes)

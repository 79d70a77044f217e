"""The table of all scenarios that load each proxy as hard as one core can."""

from . import load, report

NOTE = ("Load: {what} and the application ({app}) share core 1; the proxies alone have core 0. A core that is not "
        "~100 % busy means the load, not the proxy, was the limit: compare CPU per request then.")


def table(title: str, arguments, proxies: dict, drive: load.Driver, notes: list[str], base: str = "outrigger") -> str:
    """Loads each proxy in turn, round by round, and prints medians; `proxies` holds ports and processes by name. Ratios are those of `base` to each."""
    rounds = {kind: [] for kind in proxies}
    for number in range(arguments.rounds):
        for kind, (port, processes) in proxies.items():
            report.progress(f"round {number + 1}/{arguments.rounds}: {kind}")
            rounds[kind].append(load.measure(drive, port, processes, arguments.seconds))
    ours = rounds[base]
    rows = []
    for kind, taken in rounds.items():
        ratios = [mine.rate / other.rate for mine, other in zip(ours, taken)]
        cpu_ratios = [other.cpu_us / mine.cpu_us for mine, other in zip(ours, taken)]
        of = lambda what: report.median(getattr(each, what) for each in taken)  # noqa: E731
        rows.append([
            kind, f"{of('rate'):.0f}", report.spread([each.rate for each in taken]),
            "1" if kind == base else f"{report.median(ratios):.2f}", f"{of('cpu_us'):.1f}",
            "1" if kind == base else f"{report.median(cpu_ratios):.2f}", f"{100 * of('busy'):.0f} %",
            f"{of('p50_ms'):.2f}", f"{of('p99_ms'):.2f}", f"{of('rss') / 2**20:.1f}",
            str(sum(each.errors for each in taken)),
        ])
    head = ["proxy", "requests/s", "spread", "ours ÷ its rate", "CPU µs/request", "its CPU ÷ ours", "core busy",
            "p50 ms", "p99 ms", "RSS MiB", "errors"]
    return report.table(title, head, rows, notes)

"""Scenario: from exec to the first green readiness probe."""

import http.client
import tempfile
import time
from pathlib import Path

from . import report
from .idle import everything
from .peers import envoy, outrigger
from .process import free_ports


def measure(peers, arguments) -> str:
    """Starts each in turn, with everything on for Outrigger, with a plain proxy for both."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name:
        folder = Path(name)
        app, port = free_ports(2)
        for number in range(arguments.rounds * 2):
            report.progress(f"start {number + 1}/{arguments.rounds * 2}")
            work = folder / str(number)
            work.mkdir()
            once(times, "outrigger, plain proxy", lambda: outrigger.plain(peers, work, port, app), "/readyz")
            once(times, "outrigger, everything on", lambda: everything(peers, work), "/readyz")
            if peers.envoy is not None:
                once(times, "envoy, plain proxy", lambda: envoy.plain(peers, work, port, app), "/ready")
    rows = [[what, f"{report.median(taken):.1f}", f"{min(taken):.1f}", f"{max(taken):.1f}"]
            for what, taken in times.items()]
    return report.table("Start to ready", ["process", "median ms", "min", "max"], rows,
                        ["From fork to the first 200 of the readiness endpoint, asked every 0.5 ms."])


def once(times: dict, what: str, start, path: str) -> None:
    """One start; the process is ended before the next."""
    with start() as process:
        while not green(process.admin, path):
            if process.child.poll() is not None or time.monotonic() - process.began > 20:
                raise SystemExit(f"bench: {what} did not become ready:\n{process.log.read_text()[-3000:]}")
            time.sleep(0.0005)
        times.setdefault(what, []).append(1e3 * (time.monotonic() - process.began))


def green(port: int, path: str) -> bool:
    """Whether a readiness endpoint answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()

"""Scenario: a rate limit whose key is another one in every request, millions of times."""

import http.client
import tempfile
from pathlib import Path

from . import load, report
from .peers import outrigger
from .process import free_ports, wait_port

MILLIONS = 10
# Requests in one write: ten to a write keep the load from being the limit.
TOGETHER = 10


def measure(peers, arguments) -> str:
    """Memory and the cost of a request, as ever more keys have come."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name:
        folder = Path(name)
        [port] = free_ports(1)
        body = (f"proxy:\n  listeners:\n    - name: in\n      direction: inbound\n      address: 127.0.0.1:{port}\n"
                "      routes:\n        - name: all\n"
                "          filters: [{ type: DirectResponse, directResponse: { statusCode: 200 } }]\n"
                # An hour: no key is forgotten because its time is over.
                "          rateLimits: [{ name: each, requests: 2, per: 1h, key: [{ type: Header, header: { name: x-key } }] }]\n")
        script = folder / "keys.lua"
        script.write_text(f"""
local key = 0
init = function(args) key = tonumber(args[1]) end
request = function()
  local all = {{}}
  for i = 1, {TOGETHER} do
    key = key + 1
    all[i] = "GET / HTTP/1.1\\r\\nHost: bench\\r\\nX-Key: user-" .. key .. "\\r\\n\\r\\n"
  end
  return table.concat(all)
end
""")
        drive = load.wrk(peers, 8, "-s", str(script))
        rows, asked, first = [], 0, 0
        with outrigger.start(peers, folder, "keys", body) as process:
            wait_port(port, process)
            rows.append(["0", f"{process.rss_bytes() / 2**20:.1f}", "-", "0", "0", "-"])
            for goal in (1, MILLIONS / 2, MILLIONS):
                cpu, before, refused = process.cpu_seconds(), asked, 0
                while asked < goal * 1e6:
                    report.progress(f"{asked / 1e6:.1f} million keys")
                    # The next run begins far behind the keys that this one sent without hearing of them.
                    got = drive(port, arguments.seconds, "--", str(first))
                    first += 10 * max(got.requests, 1)
                    asked, refused = asked + got.requests, refused + got.errors
                cpu = process.cpu_seconds() - cpu
                told = metrics(process.admin)
                rows.append([f"{asked / 1e6:.1f}", f"{process.rss_bytes() / 2**20:.1f}", f"{1e6 * cpu / (asked - before):.1f}",
                             f"{total(told, 'outrigger_rate_limit_evictions_total') / 1e6:.2f}",
                             f"{total(told, 'outrigger_rate_limit_table_fullness_ratio'):.2f}", str(refused)])
        return report.table("Keys of a rate limit", ["million keys so far", "RSS MiB", "CPU us/request", "forgotten, million", "fullness", "refused"],
                            rows, ["Every request brings a key that was not there before, and is answered by a filter. The table has its default size."])


def metrics(admin: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def total(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))

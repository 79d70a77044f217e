"""Load on a proxy, and what it cost the proxy."""

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .process import Process, wait_port

PROXY_CORE = 0
LOAD_CORE = 1
BODY = "x" * 1024


@dataclass
class Round:
    """One round of load."""

    rate: float
    cpu_us: float
    busy: float
    p50_ms: float
    p99_ms: float
    rss: int
    errors: int


def upstream(nginx: Path, folder: Path, port: int) -> Process:
    """The application of all scenarios: nginx with a fixed 1 KiB body, on the load's core."""
    config = folder / "upstream.conf"
    config.write_text(f"""
worker_processes 1; daemon off; pid {folder}/upstream.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600;
  client_body_temp_path {folder}/u1; proxy_temp_path {folder}/u2; fastcgi_temp_path {folder}/u3;
  uwsgi_temp_path {folder}/u4; scgi_temp_path {folder}/u5;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ default_type text/plain; return 200 "{BODY}"; }} }}
}}
""")
    process = Process([nginx, "-e", "stderr", "-c", config, "-p", folder], LOAD_CORE, folder / "upstream.log")
    wait_port(port, process)
    return process


def measure(wrk: Path, port: int, proxies: list[Process], seconds: float, connections: int) -> Round:
    """Loads a port for some seconds and reads what the proxies spent meanwhile."""
    url = f"http://127.0.0.1:{port}/"
    drive(wrk, url, 0.5, connections)
    cpu, began = sum(proxy.cpu_seconds() for proxy in proxies), time.monotonic()
    out = drive(wrk, url, seconds, connections)
    cpu, wall = sum(proxy.cpu_seconds() for proxy in proxies) - cpu, time.monotonic() - began
    requests = int(re.search(r"(\d+) requests in", out)[1])
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    errors = int(bad[1]) if bad else 0
    errors += sum(map(int, socket_errors.groups())) if socket_errors else 0
    return Round(
        rate=float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), cpu_us=1e6 * cpu / max(requests, 1),
        busy=cpu / wall, p50_ms=latency(out, "50%"), p99_ms=latency(out, "99%"),
        rss=sum(proxy.rss_bytes() for proxy in proxies), errors=errors,
    )


def drive(wrk: Path, url: str, seconds: float, connections: int) -> str:
    """Runs wrk, pinned beside the application."""
    command = ["taskset", "-c", str(LOAD_CORE), wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s",
               "--latency", "--timeout", "10s", url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def latency(out: str, which: str) -> float:
    """One row of wrk's latency distribution, in milliseconds."""
    number, unit = re.search(rf"{which}\s+([\d.]+)(us|ms|s)", out).groups()
    return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]

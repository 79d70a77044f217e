"""Load on a proxy, and what it cost the proxy.

A driver takes a port and a time, loads that port, and tells what was answered. `measure` runs
one and reads from /proc what the proxies spent meanwhile.
"""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .process import LOAD_CORE, Process, wait_port

BODY = "x" * 1024
# A gRPC message as it travels: not compressed, its length, a protobuf string field with 8 letters.
GRPC_MESSAGE = b"\0" + (10).to_bytes(4, "big") + b"\x0a\x08outrider"


@dataclass
class Answered:
    """What a driver got."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass
class Round(Answered):
    """One round of load, and what it cost."""

    cpu_us: float
    busy: float
    rss: int


Driver = Callable[[int, float], Answered]


def upstream(nginx: Path, folder: Path, port: int, grpc: bool = False, cores=LOAD_CORE) -> Process:
    """The application: nginx that answers 1 KiB, or over HTTP/2 a gRPC message and its trailer; on the load's core."""
    name = "upstream-grpc" if grpc else "upstream"
    answer = f'default_type text/plain; return 200 "{BODY}";'.encode()
    if grpc:
        answer = b'default_type application/grpc; add_trailer grpc-status 0; return 200 "' + GRPC_MESSAGE + b'";'
    config = folder / f"{name}.conf"
    config.write_bytes(f"""
worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600;
  client_body_temp_path {folder}/u1; proxy_temp_path {folder}/u2; fastcgi_temp_path {folder}/u3;
  uwsgi_temp_path {folder}/u4; scgi_temp_path {folder}/u5;
  server {{ listen 127.0.0.1:{port} {"http2" if grpc else ""} backlog=4096; location / {{ ANSWER }} }}
}}
""".encode().replace(b"ANSWER", answer))
    process = Process([nginx, "-e", "stderr", "-c", config, "-p", folder], cores, folder / f"{name}.log")
    wait_port(port, process)
    return process


def measure(drive: Driver, port: int, proxies: list[Process], seconds: float) -> Round:
    """Warms up, loads a port for some seconds and reads what the proxies spent meanwhile."""
    drive(port, 0.5)
    cpu, began = sum(proxy.cpu_seconds() for proxy in proxies), time.monotonic()
    got = drive(port, seconds)
    cpu, wall = sum(proxy.cpu_seconds() for proxy in proxies) - cpu, time.monotonic() - began
    return Round(**vars(got), cpu_us=1e6 * cpu / max(got.requests, 1), busy=cpu / wall,
                 rss=sum(proxy.rss_bytes() for proxy in proxies))


def wrk(peers, connections: int, *more: str, cores: str = str(LOAD_CORE)) -> Driver:
    """HTTP/1.1, keep-alive, one request after the other on each connection."""
    def drive(port: int, seconds: float, *script: str) -> Answered:
        out = run(["taskset", "-c", cores, peers.wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s",
                   "--latency", "--timeout", "10s", *more, f"http://127.0.0.1:{port}/", *script])
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
        broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
        errors = (int(bad[1]) if bad else 0) + (sum(map(int, broken.groups())) if broken else 0)

        def latency(which):
            number, unit = re.search(rf"{which}\s+([\d.]+)(us|ms|s)", out).groups()
            return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]

        return Answered(int(re.search(r"(\d+) requests in", out)[1]), number_in(r"Requests/sec:\s+([\d.]+)", out),
                        latency("50%"), latency("99%"), errors)
    return drive


def h2load(peers, folder: Path, connections: int, streams: int, path: str, *more: str) -> Driver:
    """HTTP/2 with prior knowledge, `streams` requests at once on each connection."""
    log = folder / "h2load.log"

    def drive(port: int, seconds: float) -> Answered:
        log.unlink(missing_ok=True)
        out = run(["taskset", "-c", str(LOAD_CORE), peers.h2load, "-t1", f"-c{connections}", f"-m{streams}",
                   f"-D{round(1000 * seconds)}ms", f"--log-file={log}", *more, f"http://127.0.0.1:{port}{path}"])
        # `failed` counts 4xx, 5xx, what was errored and what timed out.
        done, failed = map(int, re.search(r"(\d+) done, \d+ succeeded, (\d+) failed", out).groups())
        taken = sorted(int(line.rsplit(b"\t", 1)[1]) for line in log.read_bytes().splitlines())
        return Answered(done, number_in(r"finished in .*, ([\d.]+) req/s", out), quantile(taken, 0.5) / 1e3,
                        quantile(taken, 0.99) / 1e3, failed)
    return drive


def ab(peers, folder: Path, connections: int) -> Driver:
    """HTTP/1.0 over TLS with a client certificate: a new connection and a full handshake for every request."""
    percentiles = folder / "ab.csv"

    def drive(port: int, seconds: float) -> Answered:
        out = run(["taskset", "-c", str(LOAD_CORE), peers.ab, "-q", "-r", "-c", str(connections), "-t",
                   str(max(1, round(seconds))), "-n", "200000", "-f", "TLS1.3", "-E", folder / "client.both",
                   "-e", percentiles, f"https://127.0.0.1:{port}/"])
        at = dict(line.split(",") for line in percentiles.read_text().splitlines()[1:])
        bad = re.search(r"Non-2xx responses:\s+(\d+)", out)
        return Answered(int(number_in(r"Complete requests:\s+(\d+)", out)), number_in(r"Requests per second:\s+([\d.]+)", out),
                        float(at["50"]), float(at["99"]),
                        int(number_in(r"Failed requests:\s+(\d+)", out)) + (int(bad[1]) if bad else 0))
    return drive


def run(command: list) -> str:
    """The output of a load generator, which must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"bench: `{' '.join(map(str, command))}` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def number_in(pattern: str, out: str) -> float:
    """The number that a pattern's group holds."""
    found = re.search(pattern, out)
    if not found:
        raise SystemExit(f"bench: no `{pattern}` in:\n{out[-2000:]}")
    return float(found[1])


def quantile(ordered: list, share: float) -> float:
    """A quantile of ordered values; 0 when there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

"""Scenarios of clusters: how many endpoints cost what, and what a slow endpoint costs the others' requests."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from . import load, rates, report
from .peers import envoy
from .process import LOAD_CORE, Process, free_ports, wait_port

CLUSTERS, ENDPOINTS = 100, 1000
# Milliseconds that an endpoint takes; the slow one ten times as many.
FAST, SLOW, FIELD = 5, 50, 5

SLEEPER = """
import asyncio, sys

async def talk(delay, reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            await asyncio.sleep(delay)
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()

async def main():
    for pair in sys.argv[1:]:
        port, delay = pair.split(":")
        await asyncio.start_server(lambda r, w, d=float(delay) / 1e3: talk(d, r, w), "127.0.0.1", int(port))
    await asyncio.Event().wait()

asyncio.run(main())
"""


def measure_scale(peers, arguments) -> str:
    """Memory, a reload that changes one weight, and the cost of a request, with few endpoints and with very many."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        for clusters, endpoints in ((1, 1), (CLUSTERS, ENDPOINTS)):
            port, admin, health = free_ports(3)
            config = folder / f"{clusters}.yaml"
            config.write_text(many(port, admin, health, app, clusters, endpoints, 1))
            process = Process([peers.outrigger, "run", "-c", config], 0, folder / f"{clusters}.log")
            with process:
                wait_port(port, process)
                got = load.measure(load.wrk(peers, arguments.connections), port, [process], arguments.seconds)
                taken, worst = reload_under_load(peers, process, config, many(port, admin, health, app, clusters, endpoints, 2), port, admin)
                rows.append([f"{clusters} x {endpoints}", f"{process.rss_bytes() / 1e6:.1f}", f"{got.cpu_us:.1f}",
                             f"{got.p99_ms:.2f}", f"{taken:.0f}", f"{worst:.1f}", str(got.errors)])
    return report.table("Clusters x endpoints, one core",
                        ["clusters x endpoints", "RSS MB", "CPU us/request", "p99 ms", "reload ms", "p99 ms during it", "errors"], rows,
                        ["Requests go to one cluster, whose other endpoints have a weight of 0. A reload changes a weight in every cluster; it is timed from SIGHUP to the count of reloads."])


def many(port: int, admin: int, health: int, app: int, clusters: int, endpoints: int, weight: int) -> str:
    """A config with so many clusters; requests to `/` go to the application, for it is the only endpoint with a weight."""
    lines = [f"admin: {{ listen: \"127.0.0.1:{admin}\", health: \"127.0.0.1:{health}\" }}", "runtime: { workers: 1 }", "proxy:", "  listeners:",
             f"    - {{ name: in, direction: outbound, address: 127.0.0.1:{port}, routes: ["]
    lines += [f"        {{ name: r{number}, matches: [{{ path: {{ type: PathPrefix, value: /c{number} }} }}], backendRefs: [{{ name: c{number} }}] }},"
              for number in range(1, clusters)]
    lines += ["        { name: all, backendRefs: [{ name: c0 }] }] }", "  clusters:"]
    for number in range(clusters):
        lines += [f"    - name: c{number}", "      endpoints:"]
        first = f"127.0.0.1:{app}" if number == 0 else f"10.{number}.255.1:80"
        lines.append(f'        - {{ address: "{first}", weight: {weight} }}')
        lines += [f'        - {{ address: "10.{number}.{index // 250}.{index % 250 + 1}:80", weight: 0 }}' for index in range(1, endpoints)]
    return "\n".join(lines) + "\n"


def reload_under_load(peers, process, config: Path, text: str, port: int, admin: int) -> tuple[float, float]:
    """Milliseconds that a reload took, and the slowest hundredth of the requests meanwhile."""
    before = reloads(admin)
    command = ["taskset", "-c", str(LOAD_CORE), peers.wrk, "-t1", "-c4", "-d3s", "--latency", f"http://127.0.0.1:{port}/"]
    loading = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    config.write_text(text)
    began = time.monotonic()
    os.kill(process.child.pid, signal.SIGHUP)
    while reloads(admin) == before and time.monotonic() - began < 20:
        time.sleep(0.002)
    taken = 1e3 * (time.monotonic() - began)
    out, _ = loading.communicate()
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", out).groups()
    scale = {"us": 1e-3, "ms": 1, "s": 1e3}[unit]
    return taken, float(number) * scale


def reloads(admin: int) -> float:
    """Reloads so far, whatever came of them."""
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("outrigger_config_reloads_total"))


def measure_slow(peers, arguments) -> str:
    """One of five endpoints takes ten times as long: our default beside Envoy's least request."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        ports = free_ports(FIELD)
        delays = [SLOW] + [FAST] * (FIELD - 1)
        script = folder / "sleeper.py"
        script.write_text(SLEEPER)
        pairs = [f"{port}:{delay}" for port, delay in zip(ports, delays, strict=True)]
        sleeper = stack.enter_context(Process([sys.executable, script, *pairs], LOAD_CORE, folder / "sleeper.log"))
        wait_port(ports[-1], sleeper)
        proxies = {}
        for name, policy in (("outrigger", "PeakEwma"), ("outrigger, least request", "LeastRequest")):
            port, admin, health = free_ports(3)
            config = folder / f"{policy}.yaml"
            endpoints = json.dumps([f"127.0.0.1:{one}" for one in ports])
            config.write_text(f"""
admin: {{ listen: "127.0.0.1:{admin}", health: "127.0.0.1:{health}" }}
runtime: {{ workers: 1 }}
proxy:
  listeners:
    - {{ name: in, direction: outbound, address: 127.0.0.1:{port}, routes: [{{ name: all, backendRefs: [{{ name: to }}] }}] }}
  clusters:
    - {{ name: to, endpoints: {endpoints}, loadBalancing: {{ policy: {policy} }} }}
""")
            process = stack.enter_context(Process([peers.outrigger, "run", "-c", config], 0, folder / f"{policy}.log"))
            wait_port(port, process)
            proxies[name] = (port, [process])
        if peers.envoy is not None:
            [port] = free_ports(1)
            up = ", ".join(f"{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {one} }} }} }} }}"
                           for one in ports[1:])
            # The peer's own config has the first endpoint; the others and the policy are added to it.
            process = stack.enter_context(envoy.start(peers, folder, "least", port, ports[0], up="    lb_policy: LEAST_REQUEST"))
            config = folder / "least.yaml"
            text = config.read_text().replace("lb_endpoints: [ ", f"lb_endpoints: [ {up}, ")
            process.stop()
            config.write_text(text)
            process = stack.enter_context(Process([peers.envoy, "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
                                                  0, folder / "least2.log"))
            wait_port(port, process)
            proxies["envoy, least request"] = (port, [process])
        return rates.table(f"One of {FIELD} endpoints takes {SLOW} ms, the others {FAST} ms", arguments, proxies,
                           load.wrk(peers, min(arguments.connections, 16)),
                           [rates.NOTE.format(what="wrk", app="a server that waits before it answers")])

"""Scenarios of routes: a thousand of them with all that a mesh asks for beside Envoy, and what their number costs."""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import load, rates
from .peers import envoy, outrigger
from .process import LOAD_CORE, Process, free_ports, wait_port

# A sidecar knows many services by host, and a few paths of each.
HOSTS, PATHS = 100, 10
FEW, MANY = 10, 10_000

# Takes spans and forgets them, for a real collector would need the core of the load for itself.
COLLECTOR = """
import asyncio, sys

async def talk(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = [int(line[15:]) for line in head.lower().split(b"\\r\\n") if line.startswith(b"content-length:")]
            await reader.readexactly(length[0] if length else 0)
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/x-protobuf\\r\\nContent-Length: 0\\r\\n\\r\\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()

async def main():
    await asyncio.start_server(talk, "127.0.0.1", int(sys.argv[1]))
    await asyncio.Event().wait()

asyncio.run(main())
"""

# What both write of each request.
LINE = {
    "time": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%REQ(:PATH)%", "host": "%REQ(:AUTHORITY)%", "protocol": "%PROTOCOL%",
    "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "received": "%BYTES_RECEIVED%", "sent": "%BYTES_SENT%",
    "duration": "%DURATION%", "upstream": "%UPSTREAM_HOST%", "route": "%ROUTE_NAME%", "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
}


def measure(peers, arguments) -> str:
    """A thousand routes with retries, time limits, a rate limit, tracing at 1 % and an access log."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        # Logs go to memory where there is some to mount: the disk is not what is measured.
        memory = Path("/dev/shm")
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outrigger-bench-", dir=memory if memory.is_dir() else None)))
        app, collector, ours, theirs = free_ports(4)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        script = folder / "collector.py"
        script.write_text(COLLECTOR)
        taking = stack.enter_context(Process([sys.executable, script, str(collector)], LOAD_CORE, folder / "collector.log"))
        wait_port(collector, taking)
        body = full(logs, ours, app, collector)
        proxies = {"outrigger": (ours, [stack.enter_context(outrigger.start(peers, folder, "routes", body))])}
        if peers.envoy is not None:
            process = stack.enter_context(full_envoy(peers, folder, logs, theirs, app, collector))
            proxies["envoy"] = (theirs, [process])
        for port, [process] in proxies.values():
            wait_port(port, process)
        asked = [(f"service-{host}.bench", f"/api/v1/resource-{path}/7") for host in range(HOSTS) for path in range(PATHS)]
        drive = load.wrk(peers, arguments.connections, "-s", str(asking(folder, "full", asked)))
        return rates.table(f"{HOSTS * PATHS:,} routes, retries, limits, tracing at 1 %, access log on, one core", arguments, proxies, drive,
                           [rates.NOTE.format(what="wrk, all routes in turn", app="nginx, 1 KiB body"),
                            f"{HOSTS} hosts with {PATHS} paths each. Both: two retries with a budget, a time limit for all and for one try, "
                            "a local rate limit that is never reached, spans by OTLP over HTTP to a collector that forgets them, "
                            "the same JSON members of each request to a file."])


def measure_scale(peers, arguments) -> str:
    """The same requests among ten routes of one host, and among ten thousand."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        [app] = free_ports(1)
        stack.enter_context(load.upstream(peers.nginx, folder, app))
        # Those asked for are spread among the many.
        asked = range(0, MANY, MANY // FEW)
        proxies = {}
        for name, numbers in ((f"outrigger, {FEW} routes", asked), (f"outrigger, {MANY:,} routes", range(MANY))):
            [port] = free_ports(1)
            routes = "".join(f"        - {{ name: r{number}, matches: [{{ path: {{ value: /api/v1/resource-{number} }} }}], "
                             "backendRefs: [{ name: app }] }\n" for number in numbers)
            listener = f"    - name: in\n      direction: outbound\n      address: 127.0.0.1:{port}\n      routes:\n{routes}"
            body = outrigger.section(listener, outrigger.cluster("app", app))
            process = stack.enter_context(outrigger.start(peers, folder, f"scale-{len(numbers)}", body))
            wait_port(port, process)
            proxies[name] = (port, [process])
        script = asking(folder, "scale", [("bench", f"/api/v1/resource-{number}/7") for number in asked])
        return rates.table(f"{FEW} routes and {MANY:,}, one core", arguments, proxies,
                           load.wrk(peers, arguments.connections, "-s", str(script)),
                           [rates.NOTE.format(what="wrk, ten routes in turn", app="nginx, 1 KiB body"),
                            "All routes are prefixes of one host. The requests are the same."], base=f"outrigger, {FEW} routes")


def asking(folder: Path, name: str, asked: list[tuple[str, str]]) -> Path:
    """A script for wrk that asks for all of these in turn; the requests are made before, so that it costs the load little."""
    lines = ",\n".join(f'  {{"{host}", "{path}"}}' for host, path in asked)
    script = folder / f"{name}.lua"
    script.write_text(f"""
local asked = {{
{lines}
}}
local requests, at = {{}}, 0
init = function()
  for i, one in ipairs(asked) do requests[i] = wrk.format("GET", one[2], {{ Host = one[1] }}) end
end
request = function()
  at = at % #requests + 1
  return requests[at]
end
""")
    return script


def full(logs: Path, port: int, app: int, collector: int) -> str:
    """Our config with all of it."""
    routes = "".join(
        f"        - {{ name: service-{host}-{path}, hostnames: [service-{host}.bench], "
        f"matches: [{{ path: {{ value: /api/v1/resource-{path} }} }}], backendRefs: [{{ name: app }}], "
        "timeouts: { request: 15s, backendRequest: 5s }, "
        "retry: { codes: [503], on: [connect-failure, refused-stream], attempts: 2 } }\n"
        for host in range(HOSTS) for path in range(PATHS))
    members = "".join(f"      {name}: '{operators}'\n" for name, operators in LINE.items())
    listener = (f"    - name: in\n      direction: outbound\n      address: 127.0.0.1:{port}\n"
                f"      rateLimits: [{{ name: all, requests: 1000000, per: 1s }}]\n      routes:\n{routes}")
    return (f"telemetry:\n  tracing: {{ otlp: {{ endpoint: 'http://127.0.0.1:{collector}' }}, serviceName: bench, "
            "sampling: { ratio: 0.01, maxPerSecond: 1000000 } }\n"
            + outrigger.section(listener, outrigger.cluster("app", app))
            + f"  accessLog:\n    path: {logs}/outrigger-access.log\n    json:\n{members}")


def full_envoy(peers, folder: Path, logs: Path, port: int, app: int, collector: int) -> Process:
    """Envoy's, which looks hosts up by hash, and goes through the paths of one."""
    def route(host: int, path: int) -> str:
        return (f"              - {{ name: service-{host}-{path}, match: {{ path_separated_prefix: /api/v1/resource-{path} }}, route: {{ cluster: to, "
                "timeout: 15s, retry_policy: { retry_on: 'connect-failure,refused-stream,retriable-status-codes', "
                "retriable_status_codes: [503], num_retries: 2, per_try_timeout: 5s } } }\n")

    hosts = "".join(f"            - name: service-{host}\n              domains: [service-{host}.bench]\n              routes:\n"
                    + "".join(route(host, path) for path in range(PATHS)) for host in range(HOSTS))
    members = "".join(f"                  {name}: '{operators}'\n" for name, operators in LINE.items())
    always = "{ default_value: { numerator: 100, denominator: HUNDRED } }"
    filters = f"""      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          tracing:
            random_sampling: {{ value: 1 }}
            provider:
              name: envoy.tracers.opentelemetry
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                service_name: bench
                http_service: {{ http_uri: {{ uri: "http://127.0.0.1:{collector}/v1/traces", cluster: collector, timeout: 5s }} }}
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {logs}/envoy-access.log
              log_format:
                json_format:
{members}
          route_config:
            virtual_hosts:
{hosts}
          http_filters:
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: all
              token_bucket: {{ max_tokens: 1000000, tokens_per_fill: 1000000, fill_interval: 1s }}
              filter_enabled: {always}
              filter_enforced: {always}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"""
    up = f"""    circuit_breakers:
      thresholds: [ {{ retry_budget: {{ budget_percent: {{ value: 20 }}, min_retry_concurrency: 3 }} }} ]
  - name: collector
    connect_timeout: 2s
    type: STATIC
    load_assignment:
      cluster_name: collector
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {collector} }} }} }} }} ] }} ]"""
    return envoy.start(peers, folder, "routes-envoy", port, app, filters=filters, up=up)

"""Scenario: a cluster of 5,000 Services and 50,000 endpoints in a real API server: the controller's memory, and a sidecar's that uses three of them."""

import tempfile
import time
from pathlib import Path

from . import apiserver, report
from . import controller as control
from .apiserver import ApiServer
from .peers import outrigger as ours
from .process import LOAD_CORE, free_ports

SERVICES, ENDPOINTS = 5_000, 10
# Services whose pods are there, too; to make all of them takes the API server minutes.
WITH_PODS = 500
SETTLE_SECONDS = 5


def measure(peers, arguments) -> str:
    """One controller, started when all is there."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ApiServer(Path(name)) as api:
        folder = Path(name)
        control.prepare(api)
        began = time.monotonic()
        report.progress(f"making {SERVICES:,} services")
        apiserver.services(api, SERVICES, ENDPOINTS)
        apiserver.pods(api, range(WITH_PODS), ENDPOINTS)
        report.progress(f"made in {time.monotonic() - began:.0f} s")
        api.pin()
        rows = []
        for title, parts in (("discovery alone", ("discovery",)), ("all parts (webhook, authority, discovery, repair)", ("controller", "authority", "discovery"))):
            with control.Controller(peers, folder, api, parts) as controller:
                ready = controller.wait_ready()
                if "controller" in parts:
                    control.configure(api, "outrigger-injector", controller.webhook)
                time.sleep(SETTLE_SECONDS)
                known = controller.metric('outrigger_discovery_resources{type="endpoints"}')
                if known < SERVICES:
                    raise RuntimeError(f"it knows {known:.0f} services")
                rows.append([f"controller: {title}", f"{controller.process.rss_bytes() / 1e6:.1f} MB, ready after {ready:.1f} s", "400 MB"])
                if "controller" in parts:
                    small = sidecar(peers, folder, controller.discovery)
        rows.append(["a sidecar that uses three of the services", f"{small / 1e6:.1f} MB", "12 MB"])
        return report.table(f"A cluster of {SERVICES:,} Services and {SERVICES * ENDPOINTS:,} endpoints", ["what", "resident", "goal"], rows, [
            f"etcd and kube-apiserver 1.34; the pods behind {WITH_PODS * ENDPOINTS:,} of the endpoints are there, with the sidecar, the others by name alone. "
            f"Resident {SETTLE_SECONDS} s after the last part was ready; the sidecar also has an identity, a listener and routes to the three."])


def sidecar(peers, folder: Path, discovery: int) -> int:
    """Resident bytes of a whole sidecar that follows three services."""
    [port] = free_ports(1)
    clusters = "".join(f"    - {{ name: s{n}, discovery: {{ service: 's{n}.n{n % 50}.svc.cluster.local:80' }} }}\n" for n in (1, 2, 3))
    body = (f"identity:\n  trustDomain: {control.TRUST_DOMAIN}\n  development: {{ directory: {folder}, namespace: n, serviceAccount: one }}\n"
            f"proxy:\n  discovery: {{ servers: ['127.0.0.1:{discovery}'], tls: {{ spiffeIds: ['{control.ID}'] }} }}\n"
            f"  listeners:\n    - name: out\n      direction: outbound\n      address: 127.0.0.1:{port}\n      routes:\n"
            + "".join(f"      - {{ name: r{n}, hostnames: [s{n}.test], backendRefs: [{{ name: s{n} }}] }}\n" for n in (1, 2, 3))
            + f"  clusters:\n{clusters}")
    (folder / "one").mkdir(exist_ok=True)
    process = ours.start(peers, folder / "one", "sidecar", body, cores=LOAD_CORE)
    try:
        until = time.monotonic() + 30
        # Ready is: word of all three.
        while not ready(process.health):
            if process.child.poll() is not None or time.monotonic() > until:
                raise RuntimeError(process.log.read_text()[-2000:])
            time.sleep(0.1)
        time.sleep(SETTLE_SECONDS)
        return process.rss_bytes()
    finally:
        process.stop()


def ready(health: int) -> bool:
    try:
        return control.fetch(health, "/readyz").startswith("200")
    except OSError:
        return False

"""Scenario: the admission webhook under an API server's load, and the memory of a controller that rests.

The reviews are a real API server's: it is made to send them to a recorder first, for a pod that the ReplicaSet controller made and for one of 1 MiB.
Then they are sent to the controller at a fixed rate, over TLS and as many connections as an API server keeps, by the example `reviews`.
"""

import http.server
import json
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from . import controller as control
from . import load, machine, report
from .apiserver import ApiServer
from .process import LOAD_CORE, free_ports

RATE, CONNECTIONS, LARGE = 200, 25, 1 << 20
SETTLE_SECONDS = 10


def measure(peers, arguments) -> str:
    """Rounds of ordinary pods, and rounds in which every fiftieth has 1 MiB."""
    sender = machine.example("outrigger-control", "reviews")
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name, ApiServer(Path(name)) as api:
        return inside(peers, arguments, Path(name), api, sender)


def inside(peers, arguments, folder: Path, api: ApiServer, sender: Path) -> str:
    report.progress("reviews of a real API server")
    control.prepare(api)
    api.make("/api/v1/namespaces", [{"metadata": {"name": "shop", "labels": {"outrigger.dev/inject": "enabled"}}}])
    small, large = record(api, folder)
    (folder / "small.json").write_bytes(small)
    (folder / "large.json").write_bytes(large)
    rows, idle = [], 0
    with control.Controller(peers, folder, api) as controller:
        controller.wait_ready()
        control.configure(api, "outrigger-injector", controller.webhook)
        control.wait_injecting(api, controller, pod("probe"))
        (folder / "ca.crt").write_bytes(control.trusted(api, "outrigger-injector"))
        api.pin()
        time.sleep(SETTLE_SECONDS)
        idle = controller.process.rss_bytes()
        for title, share in (("ordinary pods", 0), ("every 50th of 1 MiB", 50)):
            taken = []
            for number in range(arguments.rounds):
                report.progress(f"{title}: round {number + 1}/{arguments.rounds}")
                cpu, began = controller.process.cpu_seconds(), time.monotonic()
                out = load.run(["taskset", "-c", LOAD_CORE, sender, controller.webhook, folder / "ca.crt", folder, RATE, CONNECTIONS,
                                max(arguments.seconds, 10), share])
                busy = (controller.process.cpu_seconds() - cpu) / (time.monotonic() - began)
                taken.append((*map(float, out.split()), busy))
            sent, failed, p50, p99, most, large99, busy = (list(column) for column in zip(*taken))
            rows.append([title, f"{report.median(p50):.2f}", f"{report.median(p99):.2f}", f"{max(p99):.2f}", f"{max(most):.1f}",
                         f"{report.median(large99):.1f}" if share else "-", f"{100 * report.median(busy):.0f} %",
                         f"{sum(failed):.0f} of {sum(sent):.0f}"])
        after = controller.process.rss_bytes()
    head = ["reviews", "p50 ms", "p99 ms", "worst round's p99", "slowest", "p99 of the large", "core busy", "failed"]
    return report.table(f"The webhook at {RATE} reviews/s, on one core", head, rows, [
        f"Goal: p99 of at most 5 ms for ordinary pods, 50 ms with 1 MiB pods included. Each review is timed from the moment it was due to the last byte of its "
        f"answer, which must hold a patch; {CONNECTIONS} connections with TLS, ordinary reviews of {len(small) / 1024:.1f} KiB, large ones of "
        f"{len(large) / 2**20:.2f} MiB.",
        f"The controller (webhook, authority, discovery, repair; leader) rests {SETTLE_SECONDS} s after its start at {idle / 2**20:.1f} MiB; goal 40 MB, "
        f"which is {40e6 / 2**20:.1f} MiB. After all rounds it has {after / 2**20:.1f} MiB."])


def pod(name: str, namespace: str = "shop", size: int = 0) -> dict:
    """An ordinary pod; with more than its share of environment when `size` says so."""
    spec = template()["spec"]
    spec["containers"][0]["env"] += [{"name": f"FILLER_{number}", "value": "x" * 4000} for number in range(size // 4060)]
    return {"metadata": {"generateName": f"{name}-", "namespace": namespace}, "spec": spec}


def template() -> dict:
    probe = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10}
    return {
        "metadata": {"labels": {"app": "orders", "version": "v1"}, "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}},
        "spec": {
            "initContainers": [{"name": "migrate", "image": "registry.example/orders:1.4.2", "args": ["migrate"],
                                "envFrom": [{"configMapRef": {"name": "orders"}}]}],
            "containers": [{
                "name": "orders", "image": "registry.example/orders:1.4.2", "args": ["serve", "--port=8080"],
                "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "DATABASE", "valueFrom": {"secretKeyRef": {"name": "orders", "key": "url"}}},
                        *({"name": f"SETTING_{number}", "value": f"value of {number}"} for number in range(12))],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "livenessProbe": probe, "readinessProbe": probe,
                "volumeMounts": [{"name": "config", "mountPath": "/etc/orders"}, {"name": "scratch", "mountPath": "/tmp"}],
                "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False},
            }],
            "volumes": [{"name": "config", "configMap": {"name": "orders"}}, {"name": "scratch", "emptyDir": {}}],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "orders"}}}}]}},
            "terminationGracePeriodSeconds": 30,
        },
    }


def record(api: ApiServer, folder: Path) -> tuple[bytes, bytes]:
    """The reviews of an ordinary pod and of one with 1 MiB, as this API server sends them."""
    [port] = free_ports(1)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=recorder",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "recorder.key", "-out", "recorder.crt"],
                   cwd=folder, check=True, capture_output=True)
    reviews: list[bytes] = []
    enough = threading.Condition()

    class Recorder(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with enough:
                reviews.append(body)
                enough.notify_all()
            answer = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                                 "response": {"uid": json.loads(body)["request"]["uid"], "allowed": True}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "recorder.crt", folder / "recorder.key")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Recorder)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        control.configure(api, "recorder", port, (folder / "recorder.crt").read_bytes())
        api.make("/apis/apps/v1/namespaces/{}/deployments", [{
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "orders"}}, "template": template()},
        }])
        of = lambda large: next((it for it in reviews if (len(it) > LARGE // 2) == large), None)  # noqa: E731
        # The API server learns of the configuration a moment later; a pod that it had not asked about is no loss.
        until = time.monotonic() + 60
        while time.monotonic() < until and not (of(False) and of(True)):
            if of(False) is None:
                api.ask("DELETE", "/api/v1/namespaces/shop/pods")
            elif of(True) is None:
                api.ask("POST", "/api/v1/namespaces/shop/pods?dryRun=All", pod("large", size=LARGE))
            with enough:
                enough.wait(2)
        small, large = of(False), of(True)
        if not small or not large:
            raise RuntimeError("the API server sent no review")
    finally:
        api.ask("DELETE", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/recorder")
        server.shutdown()
        server.server_close()
    return small, large

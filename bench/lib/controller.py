"""The controller as it is installed: webhook, authority and discovery in one process, against a real API server."""

import base64
import http.client
import json
import time
from pathlib import Path

from .process import PROXY_CORE, Process, free_ports

TRUST_DOMAIN = "bench.test"
ID = f"spiffe://{TRUST_DOMAIN}/ns/n/sa/controller"
PATIENCE = 120


class Controller:
    """`outrigger controller` on the measured core. `webhook` is the port that the API server is told of."""

    def __init__(self, peers, folder: Path, api, parts=("controller", "authority", "discovery"), core=PROXY_CORE):
        self.webhook, self.authority, self.discovery, self.admin, self.health = free_ports(5)
        (folder / "token").write_text(api.token)
        kubeconfig = f"kubeconfig: {api.kubeconfig}"
        sections = {
            "controller": f"controller:\n  kubernetes: {{ {kubeconfig} }}\n  webhook: {{ listen: '127.0.0.1:{self.webhook}', names: [127.0.0.1] }}\n",
            "authority": f"authority:\n  trustDomain: {TRUST_DOMAIN}\n  listen: '127.0.0.1:{self.authority}'\n  names: [127.0.0.1]\n  "
                         f"roots: {{ secret: {{ namespace: outrigger-system, name: roots }} }}\n  auditLog: {folder}/audit\n  "
                         f"kubernetes: {{ server: 'https://127.0.0.1:{api.port}', caFile: {api.state}/pki/ca.crt, tokenFile: {folder}/token }}\n",
            "discovery": f"identity:\n  trustDomain: {TRUST_DOMAIN}\n  development: {{ directory: {folder}, namespace: n, serviceAccount: controller }}\n"
                         f"discovery: {{ listen: '127.0.0.1:{self.discovery}', kubernetes: {{ {kubeconfig} }}, limits: {{ maxConnections: 20000 }} }}\n",
        }
        config = folder / "controller.yaml"
        config.write_text(f"admin: {{ listen: '127.0.0.1:{self.admin}', health: '127.0.0.1:{self.health}' }}\n" + "".join(sections[part] for part in parts))
        self.command, self.core, self.log = [peers.outrigger, "controller", "-c", config], core, folder / "controller.log"
        self.again()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stop()

    def again(self) -> None:
        """Starts it, on the same ports as before."""
        self.began = time.monotonic()
        self.process = Process(self.command, self.core, self.log)

    def wait_ready(self) -> float:
        """Waits until all its parts are; seconds since the start."""
        while True:
            answer = ""
            try:
                answer = fetch(self.health, "/readyz?verbose")
                if answer.startswith("200"):
                    return time.monotonic() - self.began
            except OSError:
                pass
            if self.process.child.poll() is not None or time.monotonic() - self.began > PATIENCE:
                raise RuntimeError(f"the controller is not ready: {answer}\n{self.process.log.read_text()[-3000:]}")
            time.sleep(0.01)

    def metric(self, name: str) -> float:
        """The sum of a metric's series whose line begins so."""
        lines = fetch(self.admin, "/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def fetch(port: int, path: str) -> str:
    """Status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return f"{answer.status} {answer.read().decode()}"
    finally:
        connection.close()


def prepare(api) -> None:
    """Its namespace."""
    api.make("/api/v1/namespaces", [{"metadata": {"name": "outrigger-system"}}])


def configure(api, name: str, port: int, ca: bytes = b"") -> None:
    """Has the API server ask a webhook about the pods of namespaces that opted in."""
    client = {"url": f"https://127.0.0.1:{port}/inject"} | ({"caBundle": base64.b64encode(ca).decode()} if ca else {})
    api.ask("POST", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", {
        "metadata": {"name": name},
        "webhooks": [{
            "name": "inject.outrigger.dev", "admissionReviewVersions": ["v1"], "sideEffects": "NoneOnDryRun", "failurePolicy": "Ignore",
            "timeoutSeconds": 10, "clientConfig": client,
            "namespaceSelector": {"matchLabels": {"outrigger.dev/inject": "enabled"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }],
    })


def trusted(api, name: str) -> bytes:
    """The certificates by which the API server trusts a webhook that keeps its own."""
    asked = api.ask("GET", f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}")
    return base64.b64decode(asked["webhooks"][0]["clientConfig"]["caBundle"])


def wait_injecting(api, controller: Controller, pod: dict) -> None:
    """Waits until the API server gets pods injected, which needs the webhook's certificate and its own trust in it."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        made = api.ask("POST", f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods?dryRun=All", pod)
        if "outrigger.dev/status" in json.dumps(made):
            return
        time.sleep(0.1)
    raise RuntimeError(f"no pod is injected:\n{controller.process.log.read_text()[-3000:]}")

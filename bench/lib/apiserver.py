"""A real API server: etcd, kube-apiserver and its controllers, started as the tests start theirs (`cargo xtask cluster up --api`).

In: a folder. Out: a kubeconfig, requests as administrator, many objects at once. Promise: it is ended with its guard, by process id; while
something is measured it is pinned to the load's core, before that it may use both, for it is slow to fill.
"""

import http.client
import json
import os
import re
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

from .machine import ROOT, TOOLS
from .process import LOAD_CORE


class ApiServer:
    """etcd, API server and controllers below `folder`."""

    def __init__(self, folder: Path):
        self.state = folder / "cluster"
        xtask("up", "--api", "--state", self.state)
        self.kubeconfig = self.state / "admin.conf"
        text = self.kubeconfig.read_text()
        self.port = int(re.search(r"https://127\.0\.0\.1:(\d+)", text)[1])
        self.token = re.search(r'token: "([^"]+)"', text)[1]
        self.tls = ssl.create_default_context(cafile=self.state / "pki" / "ca.crt")
        self.kept = local()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        xtask("down", "--state", self.state)

    def pin(self, cores: set[int] = frozenset({LOAD_CORE})) -> None:
        """Every thread that it has; those to come inherit it."""
        for file in (self.state / "pids").iterdir():
            for task in Path(f"/proc/{file.read_text().split()[0]}/task").iterdir():
                try:
                    os.sched_setaffinity(int(task.name), cores)
                except ProcessLookupError:
                    continue

    def ask(self, method: str, path: str, body=None, kind: str = "application/json"):
        """One request; the answer as JSON. A refusal fails with what the API server says."""
        for attempt in (1, 2):
            connection = getattr(self.kept, "connection", None)
            if connection is None:
                connection = self.kept.connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls, timeout=60)
            try:
                headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind, "Accept": "application/json"}
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                text = answer.read()
            except (http.client.HTTPException, OSError):
                # It closes what rests for long.
                self.kept.connection = None
                if attempt == 2:
                    raise
                continue
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
            return json.loads(text)

    def make(self, path: str, objects: list[dict], at_once: int = 16) -> None:
        """Makes objects of one kind, many at once; `{}` in the path is an object's namespace."""
        with ThreadPoolExecutor(at_once) as pool:
            one = lambda it: self.ask("POST", path.format(it["metadata"].get("namespace", "")), it)  # noqa: E731
            for _ in pool.map(one, objects, chunksize=1):
                pass


def xtask(*arguments) -> None:
    done = subprocess.run(["cargo", "xtask", "cluster", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`cargo xtask cluster {arguments[0]}` failed; `cargo xtask setup` brings what it needs:\n{done.stdout}{done.stderr}")


def services(api: ApiServer, count: int, endpoints: int, namespaces: int = 50) -> None:
    """Services `s0`, `s1`, … over the namespaces `n0`, `n1`, …, each with a slice of so many endpoints and a pod's name for each."""
    api.make("/api/v1/namespaces", [{"metadata": {"name": f"n{number}"}} for number in range(namespaces)])
    api.make("/api/v1/namespaces/{}/services", [service(number, namespaces) for number in range(count)])
    api.make("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", [slice_of(number, endpoints, namespaces) for number in range(count)])


def service(number: int, namespaces: int = 50) -> dict:
    return {"metadata": {"name": f"s{number}", "namespace": f"n{number % namespaces}"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}


def slice_of(number: int, endpoints: int, namespaces: int = 50, ready: bool = True) -> dict:
    """The slice of a service; `ready` is of its first endpoint."""
    def endpoint(one: int) -> dict:
        at = number * endpoints + one
        return {"addresses": [f"10.{128 + (at >> 16)}.{at >> 8 & 255}.{at & 255}"], "nodeName": f"node-{at % 500}", "zone": f"zone-{one % 3}",
                "conditions": {"ready": ready or one > 0, "serving": ready or one > 0, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": f"n{number % namespaces}", "name": pod_name(number, one), "uid": uid(at)}}
    return {"metadata": {"name": f"s{number}-x7k2p", "namespace": f"n{number % namespaces}",
                         "labels": {"kubernetes.io/service-name": f"s{number}", "endpointslice.kubernetes.io/managed-by": "bench"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [endpoint(one) for one in range(endpoints)]}


def pod_name(number: int, one: int) -> str:
    return f"s{number}-7c9d8f6b5d-{one:05x}"


def uid(at: int) -> str:
    return f"00000000-0000-4000-8000-{at:012x}"


def pods(api: ApiServer, numbers, endpoints: int, namespaces: int = 50) -> None:
    """The pods behind the endpoints of these services, with the sidecar in them and bound to no node: nobody is to run them."""
    def pod(number: int, one: int) -> dict:
        return {"metadata": {"name": pod_name(number, one), "namespace": f"n{number % namespaces}", "labels": {"app": f"s{number}"},
                             "annotations": {"outrigger.dev/status": "{}"}},
                "spec": {"automountServiceAccountToken": False,
                         "initContainers": [{"name": "outrigger", "image": "none", "restartPolicy": "Always"}],
                         "containers": [{"name": "app", "image": "none", "ports": [{"containerPort": 8080}],
                                         "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]}}
    api.make("/api/v1/namespaces/{}/pods", [pod(number, one) for number in numbers for one in range(endpoints)])


def kubectl() -> Path:
    return TOOLS / "bin" / "kubectl"

"""Scenarios on a real cluster with kubelet and containers: how fast pods start, and a roll of twenty pods under load.

In: the cluster of `cargo xtask cluster` and the release image, which they make. Promise: a cluster that ran before stays; nothing else is left.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

from . import report
from .apiserver import kubectl
from .machine import ROOT
from .peers import outrigger as ours
from .process import LOAD_CORE

REPLICAS, RATE, WORKERS = 20, 200, 20
IMAGE = "docker.io/library/outrigger"
PATIENCE = 180
SIDECAR, USUAL, OURS = "native sidecar that does nothing", "init container, startup probe (the usual)", "own rules, postStart"


def measure_start(peers, arguments) -> str:
    """The arrangements by turns, as `cargo xtask cluster pod-start` measures them."""
    xtask("image")
    out = verb("pod-start", "--runs", max(arguments.rounds, 5))
    rows = re.findall(r"^(\S.+?) {2,}([\d.]+) +([\d.]+) +([\d.]+)$", out, re.M)
    medians = {name: float(middle) for name, middle, _, _ in rows}
    above, below = medians[OURS] - medians[SIDECAR], medians[USUAL] - medians[OURS]
    return report.table("Created to Ready, seconds", ["the pod's sidecar", "median", "least", "most"], [list(row) for row in rows], [
        f"“{OURS}” is {above:.2f} s above a native sidecar that does nothing (goal: at most 0.3), and {below:.2f} s below the usual arrangement (goal: at least 1). "
        "By turns, on the cluster of `cargo xtask cluster`, each pod begun at another moment of the kubelet's rounds."])


def measure_roll(peers, arguments) -> str:
    """One roll of all pods to another image of the sidecar, a client asking all the time."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name:
        was_up = is_up()
        if not was_up:
            verb("up")
        try:
            xtask("image")
            verb("load")
            return Roll(peers, Path(name)).measure()
        finally:
            if not was_up:
                verb("down")


class Roll:
    """A Deployment with the sidecar, a client beside it, and a controller."""

    def __init__(self, peers, folder: Path):
        self.peers, self.folder = peers, folder
        self.config = re.search(r"KUBECONFIG=(\S+)", verb("env"))[1]
        self.version = subprocess.run([peers.outrigger, "version"], capture_output=True, text=True, check=True).stdout.split()[1]
        self.namespace = f"bench-roll-{int(time.time())}"

    def measure(self) -> str:
        self.kubectl("create", "namespace", self.namespace, named=False)
        try:
            self.arrange()
            return self.roll()
        finally:
            self.kubectl("delete", "namespace", self.namespace, "--wait=false", named=False)

    def arrange(self) -> None:
        image = f"outrigger:{self.version}"
        (self.folder / "profile.yaml").write_text(f"image: {image}\nimagePullPolicy: Never\n")
        app = {"name": "app", "image": "localhost/app:1", "imagePullPolicy": "Never"}
        deployment = {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": REPLICAS, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 6, "containers": [app | {"args": ["serve", "-name", "web"]}]}}},
        }
        client = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
                  "spec": {"terminationGracePeriodSeconds": 1, "containers": [app | {"command": ["sleep", "900"]}]}}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}
        definitions = [one for one in re.split(r"^---\n", self.outrigger("install"), flags=re.M) if re.search(r"^kind: CustomResourceDefinition$", one, re.M)]
        self.apply("---\n".join(definitions))
        injected = self.outrigger("inject", "-f", "-", "--profile", self.folder / "profile.yaml", put=json.dumps(deployment))
        for manifest in (injected, json.dumps(client), json.dumps(service)):
            self.apply(manifest)
        report.progress(f"{REPLICAS} pods start")
        self.kubectl("rollout", "status", "deployment/web", f"--timeout={PATIENCE}s")
        self.kubectl("wait", "pod/client", "--for=condition=Ready", "--timeout=60s")
        self.next = f"outrigger:bench-{self.namespace}"
        socket = Path(self.config).parent / "containerd" / "containerd.sock"
        subprocess.run(["ctr", "--address", socket, "--namespace", "k8s.io", "images", "tag", "--force", f"{IMAGE}:{self.version}", f"docker.io/library/{self.next}"],
                       check=True, capture_output=True)

    def roll(self) -> str:
        body = f"controller:\n  namespace: {self.namespace}\n  kubernetes: {{ kubeconfig: {self.config} }}\n  repair: {{ action: 'off' }}\n"
        with ours.start(self.peers, self.folder, "controller", body, cores=LOAD_CORE):
            command = [kubectl(), "--namespace", self.namespace, "exec", "client", "--", "timeout", "-s", "TERM", "300", "/app", "load", "-rate", RATE,
                       "-workers", WORKERS, "-url", "http://web/"]
            load = subprocess.Popen([str(part) for part in command], env=self.environment(), stdout=subprocess.PIPE, text=True)
            time.sleep(5)
            report.progress("the roll")
            began = time.monotonic()
            self.outrigger("upgrade", "--image", self.next, "-n", self.namespace, "--canary", "1", "--canary-time", "1s", "--min-ready", "1s", "--wait", "--format", "json")
            taken = time.monotonic() - began
            time.sleep(5)
            self.kubectl("exec", "client", "--", "killall", "-TERM", "app")
            counts = json.loads(load.communicate(timeout=60)[0])
        restarts = self.kubectl("get", "pods", "--selector=app=web", "--output=jsonpath={.items[*].status.containerStatuses[0].restartCount}").split()
        parts = self.parts()
        rows = [["requests", f"{counts['ok'] + counts['failed']:,}", ""], ["failed", str(counts["failed"]), "0"],
                ["slowest", f"{counts['slowest_ms']} ms", "300 ms"], ["restarts of applications", str(sum(map(int, restarts))), "0"],
                ["the roll took", f"{taken:.0f} s", ""]]
        rows += [[what, f"{median(times):.0f} ms, at most {max(times):.0f} ms", ""] for what, times in parts.items()]
        return report.table(f"{REPLICAS} running pods change the sidecar's image under load", ["what", "measured", "goal"], rows, [
            f"{RATE} requests a second from one client over {WORKERS} connections, each made anew after some requests, through the Service. Nodes, pods, client, and all of Kubernetes share two cores."])

    def parts(self) -> dict[str, list[float]]:
        """What the replacement of a pod's sidecar is made of, in milliseconds, as the former and the next one log it."""
        names = ("the former sidecar still accepts", "it ends", "kubelet and container runtime start the next one", "the next one is ready")
        parts = {name: [] for name in names}
        for pod in self.kubectl("get", "pods", "--selector=app=web", "--output=name").split():
            before, after = (self.kubectl("logs", pod, "--container=outrigger", *more) for more in (["--previous"], []))
            stopping, closing, stopped = (at(before, what) for what in (" stopping ", "accepting no more", " stopped "))
            ready = at(after, " ready took=")
            started = ready - span(re.search(r" ready took=(\S+)", after)[1])
            for name, seconds in zip(names, (closing - stopping, stopped - closing, started - stopped, ready - started)):
                parts[name].append(seconds * 1000)
        return parts

    def environment(self) -> dict:
        return {**os.environ, "KUBECONFIG": self.config}

    def run(self, command, put: str = "") -> str:
        done = subprocess.run([str(part) for part in command], input=put, capture_output=True, text=True, env=self.environment(), check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    def kubectl(self, *words, named: bool = True) -> str:
        return self.run([kubectl(), *(["--namespace", self.namespace] if named else []), *words])

    def apply(self, manifest: str) -> None:
        self.run([kubectl(), "--namespace", self.namespace, "apply", "--filename=-"], manifest)

    def outrigger(self, *words, put: str = "") -> str:
        return self.run([self.peers.outrigger, *words], put)


def at(log: str, what: str) -> float:
    """When a log says something."""
    line = next((line for line in log.splitlines() if what in line), None)
    if line is None:
        raise RuntimeError(f"`{what}` is not in\n{log[-1500:]}")
    return datetime.fromisoformat(line.split()[0]).timestamp()


def span(text: str) -> float:
    """Seconds of a duration as logs have it, such as 48.123ms."""
    number, unit = re.fullmatch(r"([\d.]+)(ns|µs|ms|s)", text).groups()
    return float(number) * {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1}[unit]


def is_up() -> bool:
    return subprocess.run(["cargo", "xtask", "cluster", "status"], cwd=ROOT, capture_output=True, check=False).returncode == 0


def verb(*words) -> str:
    """A verb of `cargo xtask cluster`; what it printed."""
    return xtask("cluster", *words)


def xtask(*words) -> str:
    done = subprocess.run(["cargo", "xtask", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`cargo xtask {' '.join(words[:2])}` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout

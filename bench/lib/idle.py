"""Scenario: resident memory of an idle process, each pillar on and off."""

import tempfile
import time
from pathlib import Path

from . import report
from .certificates import make_certificates
from .peers import outrigger
from .process import free_ports

SETTLE_SECONDS = 2


def sections(folder: Path) -> dict[str, str]:
    """A small but real config for each pillar."""
    inbound, outbound, app, metrics, statsd = free_ports(5)
    (folder / "store").mkdir(exist_ok=True)
    (folder / "store" / "db.json").write_text('{"password": "bench"}')
    (folder / "app.log").write_text("")
    if not (folder / "ca.pem").exists():
        make_certificates(folder)
    tls = "      tls: { mode: strict }\n"
    return {
        "identity": outrigger.identity(folder, "server"),
        "proxy": ("proxy:\n  listeners:\n" + outrigger.listener(inbound, "app", "inbound", tls)
                  + outrigger.listener(outbound, "app", "outbound") + "  clusters:\n" + outrigger.cluster("app", app)
                  + f"  accessLog: {{ path: {folder}/access.log }}\n"),
        "logs": (f"logs:\n  stateDirectory: {folder}/state\n  sources: [{{ name: app, file: {{ path: {folder}/app.log }} }}]\n"
                 f"  sinks: [{{ name: out, inputs: [app], file: {{ path: {folder}/out.ndjson }} }}]\n"),
        "secrets": (f"secrets:\n  providers: [{{ name: store, file: {{ directory: {folder}/store }} }}]\n"
                    f"  files: [{{ path: {folder}/password, "
                    "template: '{{ with secret \"db\" }}{{ .Data.data.password }}{{ end }}' }]\n"),
        "metrics": f"metrics: {{ listen: '127.0.0.1:{metrics}', statsd: {{ listen: '127.0.0.1:{statsd}' }} }}\n",
    }


def everything(peers, folder: Path):
    """One Outrigger with every pillar on."""
    return outrigger.start(peers, folder, "everything", "".join(sections(folder).values()))


def measure(peers, arguments) -> str:
    """Starts with nothing, with each pillar alone, and with all."""
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name:
        parts = sections(Path(name))
    cases = {"nothing": []} | {pillar: ["identity", "proxy"] if pillar == "proxy" else [pillar] for pillar in parts}
    cases["everything"] = list(parts)
    taken: dict[str, list[int]] = {case: [] for case in cases}
    for number in range(arguments.rounds):
        report.progress(f"round {number + 1}/{arguments.rounds}")
        for case, pillars in cases.items():
            with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name:
                folder = Path(name)
                parts = sections(folder)
                with outrigger.start(peers, folder, "idle", "".join(parts[p] for p in pillars)) as process:
                    time.sleep(SETTLE_SECONDS)
                    if process.child.poll() is not None:
                        raise SystemExit(f"bench: it ended:\n{process.log.read_text()[-3000:]}")
                    taken[case].append(process.rss_bytes())
    rows = [[" + ".join(cases[case]) or "no pillar" if case != "everything" else "everything",
             f"{report.median(values) / 2**20:.1f}", f"{max(values) / 2**20:.1f}"] for case, values in taken.items()]
    return report.table("Idle memory", ["pillars", "RSS MiB", "highest"], rows,
                        [f"Resident memory {SETTLE_SECONDS} s after the start, without traffic, one worker."])

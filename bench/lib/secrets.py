"""Scenario: from exec to a rendered secret on disk, against the OpenBao agent."""

import json
import tempfile
import time
import urllib.request
from pathlib import Path

from . import report
from .peers import outrigger
from .process import LOAD_CORE, PROXY_CORE, Process, free_ports, wait_port

TOKEN = "bench-root-token"
TEMPLATE = '{{ with secret "secret/data/db" }}{{ .Data.data.password }}{{ end }}'


def measure(peers, arguments) -> str:
    """Starts each in turn beside one OpenBao server in dev mode."""
    if peers.bao is None:
        return "## Time to secret\n\nOpenBao is not on this machine.\n"
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as name:
        folder = Path(name)
        [port] = free_ports(1)
        address = f"http://127.0.0.1:{port}"
        command = [peers.bao, "server", "-dev", f"-dev-root-token-id={TOKEN}", f"-dev-listen-address=127.0.0.1:{port}"]
        with Process(command, LOAD_CORE, folder / "bao.log", env={"HOME": name}) as server:
            wait_port(port, server)
            put_secret(address)
            (folder / "token").write_text(TOKEN)
            starters = {"outrigger": by_outrigger, "openbao agent": by_agent}
            times = {what: [] for what in starters}
            memory = {what: [] for what in starters}
            for number in range(arguments.rounds * 2):
                report.progress(f"round {number + 1}/{arguments.rounds * 2}")
                for what, start in starters.items():
                    work = folder / f"{what.split()[0]}-{number}"
                    work.mkdir()
                    target = work / "password"
                    with start(peers, work, address, folder / "token", target) as process:
                        wait_file(target, process)
                        times[what].append(1e3 * (time.monotonic() - process.began))
                        time.sleep(1)
                        memory[what].append(process.rss_bytes() / 2**20)
    ours, theirs = times.values()
    rows = [[what, f"{report.median(times[what]):.1f}", f"{min(times[what]):.1f}", f"{max(times[what]):.1f}",
             f"{report.median(memory[what]):.1f}"] for what in times]
    ratio = report.median(theirs) / report.median(ours)
    ratio_memory = report.median(memory["openbao agent"]) / report.median(memory["outrigger"])
    return report.table("Time to secret", ["process", "median ms", "min", "max", "RSS MiB"], rows,
                        ["From fork until the file holds the secret, token authentication, KV version 2. "
                         f"The agent takes {ratio:.1f} times as long and {ratio_memory:.1f} times the memory."])


def put_secret(address: str) -> None:
    """Waits for the server and writes the one secret."""
    body = json.dumps({"data": {"password": "bench-password"}}).encode()
    for _ in range(200):
        request = urllib.request.Request(f"{address}/v1/secret/data/db", data=body, headers={"X-Vault-Token": TOKEN})
        try:
            urllib.request.urlopen(request, timeout=2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("bench: OpenBao did not take a secret")


def by_outrigger(peers, folder: Path, address: str, token: Path, target: Path) -> Process:
    return outrigger.start(peers, folder, "outrigger", f"""secrets:
  providers: [{{ name: bao, vault: {{ address: '{address}', auth: {{ token: {{ file: {token} }} }} }} }}]
  files: [{{ path: {target}, template: '{TEMPLATE}' }}]
""")


def by_agent(peers, folder: Path, address: str, token: Path, target: Path) -> Process:
    config = folder / "agent.hcl"
    config.write_text(f"""
vault {{ address = "{address}" }}
auto_auth {{ method {{ type = "token_file" config = {{ token_file_path = "{token}" }} }} }}
template {{ contents = "{TEMPLATE.replace('"', chr(92) + '"')}" destination = "{target}" }}
""")
    return Process([peers.bao, "agent", f"-config={config}"], PROXY_CORE, folder / "agent.log",
                   env={"HOME": str(folder)})


def wait_file(path: Path, process: Process) -> None:
    """Waits until the secret stands in the file."""
    until = time.monotonic() + 20
    while time.monotonic() < until and process.child.poll() is None:
        try:
            if path.stat().st_size > 0:
                return
        except OSError:
            pass
        time.sleep(0.0005)
    raise SystemExit(f"bench: no secret came:\n{process.log.read_text()[-3000:]}")

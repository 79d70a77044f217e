"""What stands on this machine: peers, processor, kernel."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from . import report

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "target" / "tools"


@dataclass
class Peers:
    """Executables by name; None where the machine has none."""

    outrigger: Path | None
    envoy: Path | None
    nginx: Path | None
    haproxy: Path | None
    bao: Path | None
    wrk: Path | None
    h2load: Path | None
    nghttp: Path | None
    ab: Path | None
    versions: dict[str, str] = field(default_factory=dict)


def find_peers() -> Peers:
    """Looks for the release binary and for each peer."""
    binary = os.environ.get("OUTRIGGER_BIN") or ROOT / f"target/{host_tuple()}/release/outrigger"
    peers = Peers(
        outrigger=Path(binary) if Path(binary).exists() else None,
        envoy=program("envoy"), nginx=program("nginx"), haproxy=program("haproxy"), bao=program("bao"),
        wrk=program("wrk"), h2load=program("h2load"), nghttp=program("nghttp"), ab=program("ab"),
    )
    for name, arguments in {
        "outrigger": ["version"], "envoy": ["--version"], "nginx": ["-v"], "haproxy": ["-v"], "bao": ["version"],
    }.items():
        path = getattr(peers, name)
        if path is not None:
            shown = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
            lines = [line for line in (shown.stdout + shown.stderr).splitlines() if line.strip()]
            peers.versions[name] = lines[0].replace(str(path), "").strip() if lines else "?"
    return peers


def program(name: str) -> Path | None:
    """The real executable: pip's wrappers start an interpreter that would be measured too."""
    for found in sorted(TOOLS.glob(f"**/_bin/{name}")) + sorted(TOOLS.glob(f"**/bin/{name}")):
        if found.is_file() and found.read_bytes()[:4] == b"\x7fELF":
            return found
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    return Path(path) if path else None


def host_tuple() -> str:
    """The target folder's name, as `rustc` spells the host."""
    return f"{platform.machine()}-unknown-linux-gnu"


def describe(peers: Peers, arguments) -> str:
    """The machine and the run, as Markdown."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "?")
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()
                  if line.startswith("MemTotal"))
    lines = [
        f"Measured {date.today()} by `bench/run --rounds {arguments.rounds} --seconds {arguments.seconds:g} "
        f"--connections {arguments.connections}` on {os.cpu_count()} × {model}, "
        f"{int(memory) / 2**20:.0f} GiB, Linux {platform.release()}.", "",
    ]
    lines += [f"- {name}: {version}" for name, version in peers.versions.items()]
    missing = [name for name in ("envoy", "nginx", "haproxy", "bao") if getattr(peers, name) is None]
    if missing:
        lines.append(f"- not on this machine: {', '.join(missing)}")
    return "\n".join(lines) + "\n"


def compiled(source: Path) -> Path:
    """The program of one Rust file, compiled once; it needs rustc and nothing else."""
    program = ROOT / "target" / "bench" / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        report.progress(f"building {source.name}")
        subprocess.run(["rustc", "--edition", "2024", "-O", "-o", program, source], check=True)
    return program


def example(package: str, name: str) -> Path:
    """An example of one of our crates, built as the release is, and with its features, for what they share is compiled once then."""
    report.progress(f"building the example {name}")
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "outrigger", "-p", package, "--example", name], cwd=ROOT, check=True)
    return ROOT / "target" / host_tuple() / "release" / "examples" / name

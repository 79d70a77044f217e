"""Processes under measurement: pinned, watched through /proc, ended by process id."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PROXY_CORE = 0
LOAD_CORE = 1


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; none when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


class Process:
    """A child in a process group of its own, pinned to one core or to a set of them."""

    def __init__(self, command, cores: int | set[int], log: Path, env: dict | None = None, cwd: Path | None = None):
        self.log = log
        with open(log, "wb") as output:
            self.began = time.monotonic()
            self.child = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, cwd=cwd, env={**os.environ, **(env or {})},
                preexec_fn=lambda: os.sched_setaffinity(0, {cores} if isinstance(cores, int) else cores),
            )

    def pids(self) -> list[int]:
        """The process and all that descend from it."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
        found, queue = [], [self.child.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue += parents.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree so far."""
        return sum(map(cpu_seconds, self.pids()))

    def thread_seconds(self) -> dict[str, float]:
        """User and system time of each thread of the process itself, by the thread's name."""
        taken = {}
        for task in Path(f"/proc/{self.child.pid}/task").iterdir():
            try:
                name, fields = re.search(r"\((.*)\) (.*)", (task / "stat").read_text()).groups()
            except OSError:
                continue
            taken[f"{name}/{task.name}"] = sum(map(int, fields.split()[11:13])) / TICKS
        return taken

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree (shared pages count once per process)."""
        total = 0
        for pid in self.pids():
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
            except OSError:
                continue
        return total

    def stop(self) -> None:
        """Ends the tree; by force when asking did not help."""
        for how, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.child.pid, how)
            except ProcessLookupError:
                break
            try:
                self.child.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def free_ports(count: int) -> list[int]:
    """Free loopback ports, all held at once so that none is given twice."""
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def wait_port(port: int, process: Process, seconds: float = 20) -> None:
    """Waits until a port takes connections; fails with the process's log."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.child.poll() is not None:
            break
        time.sleep(0.01)
    raise SystemExit(f"bench: nothing listens on {port}; {process.log}:\n{process.log.read_text()[-3000:]}")

"""The processes below one, by what they are, and the memory that is their own; knows nothing of what is made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from workers.stack import PROCESSES

RAY_TITLES = {
    "ray::ServeReplica:freshet": "replica",
    "ray::ServeController": "serve controller",
    "ray::LrmTrainerActor": "lrm trainer",
    "ray::TwoTowerTrainerActor": "two-tower trainer",
    "ray::": "ray worker",
}
OWN = re.compile(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", re.M)
SESSION = re.compile(r"--session[-_]dir=(\S+)")


@dataclass(frozen=True)
class Process:
    """One that lives, or did."""

    name: str
    pid: int
    created_s: float


def name_of(cmdline: Sequence[str]) -> str:
    """Return what a process is, by its command line."""
    line = " ".join(cmdline)
    for title, name in RAY_TITLES.items():
        if line.startswith(title):
            return name
    if "kafka.Kafka" in cmdline:
        return "kafka"
    if "infra.ray_head" in cmdline:
        return "ray head"
    if "freshet" in cmdline:
        arguments = tuple(cmdline[cmdline.index("freshet") + 1 :])
        names = {of: name for name, of in PROCESSES.items()}
        return names.get(arguments, " ".join(arguments))
    program = Path(cmdline[0]).name if cmdline else ""
    if program in ("gcs_server", "raylet"):
        return program
    if "multiprocessing" in line:
        return "decoder" if "spawn_main" in line else "resource tracker"
    return "ray's own" if "/ray/" in line else program or "ended"


def processes_below(pid: int) -> list[Process]:
    """Return all processes below one, and itself."""
    try:
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    found = []
    for one in family:
        with suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(Process(name_of(one.cmdline()), one.pid, one.create_time()))
    return found


def own_bytes(pid: int) -> int | None:
    """Return the memory that a process alone fills, its part of what is shared in proportion; None if it is gone.

    Not what it has mapped of files, which the kernel takes back when it likes: a broker maps all its indexes.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    return 1024 * sum(map(int, OWN.findall(text)))


def ray_session(pid: int) -> Path | None:
    """Return the folder of the Ray cluster below a process; None where none runs."""
    for one in processes_below(pid):
        if one.name in ("raylet", "gcs_server"):
            with suppress(psutil.NoSuchProcess):
                found = SESSION.search(" ".join(psutil.Process(one.pid).cmdline()))
                if found:
                    return Path(found[1])
    return None

"""What a measurement was taken on: machine, versions, commit. Knows nothing of what was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from infra.kafka.jars import KAFKA_VERSION

ROOT = Path(__file__).resolve().parents[1]
ACCELERATORS = Path("/proc/driver/nvidia/gpus")


def provenance() -> dict[str, object]:
    """Return hardware, versions and commit, as reports and benchmarks carry them."""
    return {"hardware": hardware(), "versions": versions(), "commit": commit()}


def hardware() -> dict[str, str | int | float | list[str]]:
    """Return the machine as this process may use it: a container's share, not its host's."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _field_of(Path("/proc/cpuinfo"), "model name") or platform.processor() or "unknown",
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": [
            _field_of(path / "information", "Model") or path.name
            for path in sorted(ACCELERATORS.glob("*"))
        ],
    }


def usable_cores() -> float:
    """Return how many cores this process gets: its affinity, capped by the control group's quota."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def versions() -> dict[str, str]:
    """Return the versions of Python, Freshet, the local broker and every package depended on directly."""
    required = metadata.requires("freshet") or []
    names = {re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line}
    own = {
        "python": platform.python_version(),
        "freshet": metadata.version("freshet"),
        "apache-kafka": KAFKA_VERSION,
    }
    return own | {name: metadata.version(name) for name in sorted(names)}


def commit() -> str:
    """Return the checkout's commit, `-dirty` appended when files differ from it; `unknown` without git."""
    if not (
        ROOT / ".git"
    ).exists():  # an export inside somebody else's repository is not that repository
        return "unknown"
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head}-dirty" if _git("status", "--porcelain") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _field_of(path: Path, name: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, "")

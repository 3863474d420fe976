"""How much disk each part of a run takes; knows nothing of what is made of it.

Blocks, not lengths: Kafka sets aside 10 MB for each index of a segment and fills hardly any of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from streams.topics import ALL
from tests.soak.options import FORGOTTEN

BLOCK_BYTES = 512
FORGOTTEN_AREAS = ("topics that forget", "shards", "checkpoints", "logs")
"""Where what is old goes: retention, announcements that have expired, the newest few, a longest length."""
KEPT_AREAS = (
    "compacted topics", "topics that are kept", "kafka's own", "ray's logs", "state", "other",
)  # fmt: skip
"""Where what is old stays, by promise: the last of each key (tombstones for 60 days, disambiguation codes for good),
refused records, when videos were servable; what others look after, as Ray after its logs; files written anew."""


def disk_bytes(var_dir: Path, ray_session: Path | None) -> Counter[str]:
    """Return the bytes that are taken, by area."""
    taken: Counter[str] = Counter(dict.fromkeys((*FORGOTTEN_AREAS, *KEPT_AREAS), 0))
    for path, blocks in _files(var_dir):
        taken[area_of(path.relative_to(var_dir).parts)] += blocks * BLOCK_BYTES
    if ray_session is not None:
        taken["ray's logs"] = (
            sum(blocks for _, blocks in _files(ray_session / "logs")) * BLOCK_BYTES
        )
    return taken


def area_of(parts: tuple[str, ...]) -> str:
    """Return what a file below the folder of a run belongs to."""
    match parts:
        case ("kafka", "log", folder, *_):
            return _area_of_log(folder)
        case ("kafka", "broker.log" | "broker.log.1") | ("logs", *_):
            return "logs"
        case ("store", "shards", *_):
            return "shards"
        case ("store", "checkpoints", *_):
            return "checkpoints"
        case ("freshness.state" | "freshness.json", *_) | ("faust", *_) | ("sealers", *_):
            return "state"
    return "other"


def _area_of_log(folder: str) -> str:
    topic = folder.rpartition("-")[0]
    if topic in FORGOTTEN or folder.endswith("-delete"):
        return "topics that forget"
    for one in ALL:
        if one.name == topic:
            return f"{'compacted topics' if one.cleanup == 'compact' else 'topics that are kept'}"
    return "kafka's own"


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield files and how many blocks they take; what goes meanwhile is left out."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            yield path, found.st_blocks


def log_problems(var_dir: Path, *, max_bytes: int) -> list[str]:
    """Return which log is much longer than the length at which it begins anew: that is looked for every second."""
    found = [*(var_dir / "logs").glob("*.log"), var_dir / "kafka" / "broker.log"]
    return [
        f"{path.name} has {path.stat().st_size} bytes, and begins anew at {max_bytes}"
        for path in found
        if path.stat().st_size > 2 * max_bytes
    ]

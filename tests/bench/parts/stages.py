"""Where a process spends its time, by stage, from a profile by cProfile; knows nothing of what it runs.

A profile rather than samples: a thread that samples gets its turn only between two bytecodes, so that a long call into
C would be seen in whatever comes next. Profiling costs time at each call, so shares are told, and of another run than
the one whose rates are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

STAGES = (
    "consume", "scan", "decode", "builder", "label", "arrow", "parquet", "histories", "counts", "store", "produce",
    "commit", "wait", "other",
)  # fmt: skip
MAX_DEPTH = 8

Function = tuple[str, int, str]
"""File, line and name; the file of what is not Python is `~`."""
Callers = Mapping[Function, tuple[int, int, float, float]]
Profile = Mapping[Function, tuple[int, int, float, float, Callers]]
"""As `pstats.Stats.stats`: calls, calls not recursive, own seconds, seconds, and the same by caller."""

# The first that is in the text counts, so what is special stands first.
_NATIVE = {
    "'consume'": "consume",
    "'poll' of 'cimpl.Consumer": "consume",
    "cimpl.Message": "consume",
    "'produce": "produce",
    "cimpl.Producer": "commit",
    "msgspec.json.Decoder": "decode",
    "_thread.lock": "wait",
    "pyarrow._parquet": "parquet",
    "pyarrow": "arrow",
}
_BY_NAME = {
    "histor": "histories", "label": "label", "settle": "commit", "decode": "decode", "produce": "produce",
    "restore": "other",
}  # fmt: skip
_BY_FILE = {
    "pyarrow/parquet/": "parquet",
    "streams/watch_scan.py": "scan",
    "streams/packed_history.py": "histories",
    "streams/counts.py": "counts",
    "streams/watches.py": "decode",
    "streams/codec.py": "decode",
    "streams/events.py": "decode",
    "streams/shards.py": "arrow",
    "streams/client.py": "consume",
    "streams/": "builder",
    "workers/shard_rows.py": "arrow",
    "workers/shard_contents.py": "histories",
    "workers/video_labels.py": "label",
    "workers/watch_intake.py": "decode",
    "workers/": "builder",
    "infra/storage.py": "store",
}


def stage_of(function: Function) -> str | None:
    """Return the stage that a function belongs to; None for one that works for whoever calls it."""
    file, _, name = function
    if file == "~":
        return _first(_NATIVE, name)
    by_file = _first(_BY_FILE, Path(file).as_posix())
    if by_file in (None, "parquet", "store"):
        return by_file
    return _first(_BY_NAME, name) or by_file


def _first(rules: Mapping[str, str], text: str) -> str | None:
    return next((stage for word, stage in rules.items() if word in text), None)


def stage_seconds(profile: Profile) -> dict[str, float]:
    """Return own seconds by stage; what works for its callers counts for them, each with the time spent for it."""
    found = dict.fromkeys(STAGES, 0.0)
    for function, (_, _, own_s, _, callers) in profile.items():
        stage = stage_of(function)
        if stage is not None:
            found[stage] += own_s
            continue
        left_s = own_s
        for caller, (_, _, for_caller_s, _) in callers.items():
            left_s -= for_caller_s
            for of_caller, share in _shares_of(caller, profile, MAX_DEPTH).items():
                found[of_caller] += share * for_caller_s
        found["other"] += max(0.0, left_s)
    return found


def _shares_of(function: Function, profile: Profile, depth: int) -> dict[str, float]:
    """Return for which stages a function works, as shares of all that it does, from those of its callers."""
    stage = stage_of(function)
    if stage is not None:
        return {stage: 1.0}
    callers = profile[function][4] if function in profile else {}
    total_s = sum(spent[3] for spent in callers.values())
    if depth == 0 or total_s <= 0:
        return {"other": 1.0}
    found: dict[str, float] = defaultdict(float)
    for caller, spent in callers.items():
        for of_caller, share in _shares_of(caller, profile, depth - 1).items():
            found[of_caller] += share * spent[3] / total_s
    return found


def costliest(profile: Profile, count: int) -> list[tuple[str, float]]:
    """Return the functions with most own seconds, most first."""
    found = [
        (name if file == "~" else f"{Path(file).stem}.{name}", spent[2])
        for (file, _, name), spent in profile.items()
    ]
    return sorted(found, key=lambda item: -item[1])[:count]


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return each stage's share of all; 0 for one without any."""
    total = sum(seconds.values()) or 1.0
    return {stage: seconds.get(stage, 0.0) / total for stage in STAGES}

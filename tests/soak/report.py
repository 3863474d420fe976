"""What came of a soak, for programs and for people; knows nothing of how it was found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.soak.asking import Asked, statuses
from tests.soak.kills import Killed
from tests.soak.ledger import Seen, Sent
from tests.soak.samples import MB, Sample, grown
from tests.soak.verdicts import Window, excused, failures_outside

Checks = Mapping[str, Sequence[str]]


def sent_report(sent: Sent, seen: Seen) -> dict[str, Any]:
    """Return how much went in and came out."""
    return {
        "uploads": len(sent.uploads),
        "removals": len(sent.removals),
        "watches": len(sent.watches),
        "watches_sent_twice": len(sent.duplicates),
        "broken_records": len(sent.bad_uploads) + len(sent.bad_watches),
        "servable": len(set(sent.uploads.values()) & set(seen.servable)),
        "dead_letters": sum(map(len, seen.letters.values())),
        "shards": len(seen.shards),
        "checkpoints": {name: len(versions) - 1 for name, versions in seen.versions.items()},
        "refreshes": dict(seen.refreshes),
        "refused_swaps": dict(seen.rejected),
    }


def kills_report(killed: Sequence[Killed], began_s: float) -> list[dict[str, Any]]:
    """Return who was killed when, and after how long another process was there."""
    return [
        {
            "victim": one.victim,
            "pid": one.pid,
            "at_s": round(one.at_s - began_s, 1),
            "replaced_after_s": None if one.back_s is None else round(one.back_s - one.at_s, 1),
        }
        for one in killed
    ]


def requests_report(asked: Sequence[Asked], killed: Sequence[Killed]) -> dict[str, Any]:
    """Return how requests were answered, and for how long who answers was dead."""
    windows = excused(killed, asked)
    failed = [one for one in asked if one.status == 0 or one.status >= 500]
    took_s = [one.done_s - one.sent_s for one in asked if one.status == 200]
    return {
        "sent": len(asked),
        "by_status": statuses(asked),
        "failed": len(failed),
        "failed_while_nobody_was_dead": len(failures_outside(asked, windows)),
        "windows": [
            {"victim": one.victim, "seconds": round(_length_s(window), 1)}
            for one, window in zip(_answering(killed, windows), windows, strict=True)
        ],
        "p50_s": round(float(np.percentile(took_s, 50)), 3) if took_s else None,
        "p99_s": round(float(np.percentile(took_s, 99)), 3) if took_s else None,
    }


def _answering(killed: Sequence[Killed], windows: Sequence[Window]) -> list[Killed]:
    began = {window[0] for window in windows}
    return [one for one in killed if one.at_s in began]


def _length_s(window: Window) -> float:
    return min(window[1] - window[0], 1e6)


def samples_report(samples: Sequence[Sample], *, load_s: float) -> dict[str, Any]:
    """Return how memory and disk went."""
    totals = [sum(one.own_bytes.values()) for one in samples]
    areas = sorted(samples[-1].disk_bytes) if samples else []
    return {
        "memory": {
            "first_bytes": totals[0] if totals else None,
            "most_bytes": max(totals, default=None),
            "last_bytes": totals[-1] if totals else None,
            "lives": [
                {
                    "name": one.name,
                    "pid": one.pid,
                    "watched_s": round(one.watched_s),
                    "median_bytes": round(one.median_bytes),
                    "grown_bytes": round(one.grown_bytes),
                    "allowed_bytes": round(one.allowed_bytes),
                }
                for one in grown(samples, load_s=load_s)
            ],
        },
        "disk": {
            area: {
                "first_bytes": samples[0].disk_bytes[area],
                "most_bytes": max(one.disk_bytes[area] for one in samples),
                "last_bytes": samples[-1].disk_bytes[area],
            }
            for area in areas
        },
        "samples": [
            {
                "at_s": round(one.at_s, 1),
                "records": one.records,
                "came_in_bytes": dict(one.came_in_bytes),
                "own_bytes": _by_name(one),
                "disk_bytes": dict(one.disk_bytes),
            }
            for one in samples
        ],
    }


def _by_name(sample: Sample) -> dict[str, int]:
    found: dict[str, int] = {}
    for process, own in sample.own_bytes.items():
        found[process.name] = found.get(process.name, 0) + own
    return dict(sorted(found.items()))


def show(report: Mapping[str, Any], checks: Checks, console: Console) -> None:
    """Print it for a person."""
    kills = Table("killed", "at", "replaced after", title="Kills", title_justify="left")
    for one in report["kills"]:
        after = one["replaced_after_s"]
        kills.add_row(
            one["victim"], f"{one['at_s']:.0f} s", "-" if after is None else f"{after:.1f} s"
        )
    console.print(kills)
    memory = Table(
        "process",
        "looked at",
        "own memory",
        "grown",
        "allowed",
        title="Memory",
        title_justify="left",
    )
    for one in report["memory"]["lives"]:
        memory.add_row(
            one["name"],
            f"{one['watched_s']} s",
            *(
                f"{one[name] / MB:.0f} MB"
                for name in ("median_bytes", "grown_bytes", "allowed_bytes")
            ),
        )
    console.print(memory)
    disk = Table("on disk", "first", "most", "last", title="Disk", title_justify="left")
    for area, one in report["disk"].items():
        disk.add_row(
            area,
            *(f"{one[name] / MB:.1f} MB" for name in ("first_bytes", "most_bytes", "last_bytes")),
        )
    console.print(disk)
    console.print(f"sent and seen: {report['stream']}", soft_wrap=True)
    console.print(f"requests: {report['requests']}", soft_wrap=True)
    for name, problems in checks.items():
        console.print(f"{'[red]no  [/]' if problems else '[green]yes [/]'} {name}")
        for problem in problems:
            console.print(f"      {problem}", soft_wrap=True, markup=False)

"""What contradicts the promises, in words: nothing lost, nothing answered wrongly, all figures flow.

Plain functions of what was sent, seen and asked; knows nothing of processes and clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streams.shards import verify_shards
from streams.topics import UPLOADS, WATCHES
from tests.soak.asking import Asked
from tests.soak.kills import RAY_PARTS, Killed
from tests.soak.ledger import Place, Seen, Sent

ANSWERING = ("serve", "replica", "serve controller", *RAY_PARTS)
"""Whose kill may cost answers, until there is one again."""
NOTICED_S = 15.0
"""In which replicas that outlive a part of Ray are gone, too."""
SHOWN = 5
Window = tuple[float, float]


def lost(sent: Sent, seen: Seen) -> list[str]:
    """Return what was acknowledged and has not become what it should have, or more than once."""
    problems = list(sent.failures[:SHOWN])
    problems += _named("uploads are not servable", set(sent.uploads.values()) - set(seen.servable))
    problems += _named(
        "removals have no tombstone", set(sent.removals.values()) - set(seen.removed)
    )
    held = seen.in_shards
    problems += _named("watches are in no shard", [at for at in sent.watches if not held[at]])
    problems += _named("watches are in several shards", [at for at, n in held.items() if n > 1])
    problems += _named(
        "watches in shards were never sent, or not as such", set(held) - sent.watches
    )
    problems += verify_shards(seen.shards[offset] for offset in sorted(seen.shards))[:SHOWN]
    problems += seen.unread[:SHOWN]
    duplicates = sum(shard.duplicates for shard in seen.shards.values())
    if duplicates != len(sent.duplicates):
        problems.append(
            f"{duplicates} duplicates are counted, {len(sent.duplicates)} watches were sent twice"
        )
    return problems


def not_refused(sent: Sent, seen: Seen) -> list[str]:
    """Return which broken records did not become dead letters with their reason, and which others did."""
    problems = []
    for topic, bad, once in (
        (UPLOADS.name, sent.bad_uploads, False),  # at least once
        (WATCHES.name, sent.bad_watches, True),
    ):
        letters = seen.letters[topic]
        problems += _named(
            f"broken records of {topic} are no dead letters", set(bad) - set(letters)
        )
        problems += _named(f"sound records of {topic} are dead letters", set(letters) - set(bad))
        wrong = [at for at, reason in bad.items() if {*letters.get(at, [reason])} != {reason}]
        problems += _named(f"dead letters of {topic} have another reason", wrong)
        twice = [at for at, reasons in letters.items() if once and len(reasons) > 1]
        problems += _named(f"records of {topic} are dead letters twice", twice)
    return problems


def not_learned(seen: Seen, models: Iterable[str]) -> list[str]:
    """Return which shards are not in exactly one checkpoint of each model."""
    problems = []
    shards = {shard.shard_id for shard in seen.shards.values()}
    for name in models:
        learned, versions = seen.learned[name], seen.versions[name]
        problems += _named(f"shards are not learned by {name}", shards - set(learned))
        problems += _named(
            f"shards are learned twice by {name}", [one for one, n in learned.items() if n > 1]
        )
        missed = set(range(versions[0], versions[-1] + 1)) - set(versions)
        problems += _named(f"checkpoints of {name} were gone before they were looked at", missed)
    return problems


def _named(what: str, found: Iterable[str | Place | int]) -> list[str]:
    listed = sorted(map(str, found))
    if not listed:
        return []
    more = ", …" if len(listed) > SHOWN else ""
    return [f"{len(listed)} {what}: {', '.join(listed[:SHOWN])}{more}"]


def excused(killed: Iterable[Killed], asked: Sequence[Asked]) -> list[Window]:
    """Return when answers may fail: from the kill of one that answers until a request is answered again.

    Without Ray's parts replicas go on for a moment: what fails within `NOTICED_S` is of the kill, too.
    """
    windows = []
    for one in killed:
        if one.victim in ANSWERING:
            noticed_s = one.at_s + (NOTICED_S if one.victim in RAY_PARTS else 0.0)
            down = [
                each.sent_s
                for each in asked
                if _failed(each) and one.at_s <= each.sent_s <= noticed_s
            ]
            down_s = max(down, default=one.at_s)
            again = [each.done_s for each in asked if each.status == 200 and each.sent_s > down_s]
            windows.append((one.at_s, min(again, default=math.inf)))
    return windows


def _failed(one: Asked) -> bool:
    """Whether it got no answer, or a server's error."""
    return one.status == 0 or one.status >= 500


def failures_outside(asked: Sequence[Asked], windows: Sequence[Window]) -> list[Asked]:
    """Return the requests that got no answer, or a server's error, while nobody who answers was dead."""
    return [
        one
        for one in asked
        if _failed(one)
        and not any(began <= one.done_s and one.sent_s <= ended for began, ended in windows)
    ]


def answered_badly(asked: Sequence[Asked], killed: Sequence[Killed]) -> list[str]:
    """Return what is wrong with the answers; 429 is polite, and only counted."""
    if not any(one.status == 200 for one in asked):
        return ["no request was answered"]
    problems = [f"a wrong answer: {one.wrong}" for one in asked if one.wrong][:SHOWN]
    refused = sum(400 <= one.status < 500 and one.status != 429 for one in asked)
    if refused:
        problems.append(f"{refused} requests were refused as if they were wrong")
    failed = failures_outside(asked, excused(killed, asked))
    if failed:
        first = failed[0]
        problems.append(
            f"{len(failed)} requests failed while nobody who answers was dead, the first with status {first.status} "
            f"after {first.done_s - first.sent_s:.1f} s"
        )
    return problems


OF_ANY_ARM = "time_to_threshold_s of any arm"


def figures_of(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the figures of the freshness worker by name; None for what nobody knows.

    Where no new video of an arm has reached the threshold there is no time in which it did; in one arm there is.
    """
    found: dict[str, float | None] = {
        name: report[name]
        for name in ("written_time_ms", "event_time_ms", "impressions", "coverage", "swaps")
    }
    for arm, of_arm in report["cold_start"]["arms"].items():
        for name in (
            "shown_share", "reached_share", "effective_vocabulary", "clicks_per_impression", "likes_per_impression",
        ):  # fmt: skip
            found[f"{name} of {arm}"] = of_arm[name]
        if of_arm["reached_share"] != 0:
            found[f"time_to_threshold_s of {arm}"] = of_arm["time_to_threshold_s"]["p50"]
    if not any(name.startswith("time_to_threshold_s") for name in found):
        found[OF_ANY_ARM] = None
    for stage, delays in report["delays_s"].items():
        found[f"delay {stage}"] = delays["p50"]
    for model, age_s in report["model_age_s"].items():
        found[f"age of {model}"] = age_s
    codebook = report["codebook"]
    found["semantic IDs"] = codebook["videos"] or None
    found["unique share"] = codebook["unique_share"]
    for level in codebook["usage"]:
        found[f"perplexity of level {level['level']}"] = level["perplexity"]
    return found


MOVING = ("written_time_ms", "event_time_ms", "impressions", "swaps", "semantic IDs")


def figures_stopped(
    at_kill: Mapping[str, float | None], at_end: Mapping[str, float | None]
) -> list[str]:
    """Return which figures are missing at the end, or did not move since the worker that counts them was killed."""
    problems = [f"no figure: {name}" for name, value in at_end.items() if value is None]
    if not at_kill or not at_end:
        return [*problems, "the freshness worker had no figures when it was killed, or at the end"]
    for name in MOVING:
        before, after = at_kill.get(name) or 0, at_end.get(name) or 0
        if not after > before:
            problems.append(
                f"{name} did not move since the freshness worker was killed: {before}, {after}"
            )
    return problems


def not_back(killed: Iterable[Killed]) -> list[str]:
    """Return who was killed and has nobody in its place."""
    return [
        f"{one.victim} ({one.pid}) was killed, and nobody took its place"
        for one in killed
        if one.back_s is None
    ]


def metrics_missing(asked_for: Iterable[str], exposed: set[str]) -> list[str]:
    """Return the series of the dashboard and of the rules that no process exposes; recorded ones are not asked for."""
    known = {name.removesuffix("_total") for name in exposed}
    return [
        f"no process exposes {name}"
        for name in sorted(asked_for)
        if name != "up" and not name.startswith("slo:") and not known & _families(name)
    ]


def _families(series: str) -> set[str]:
    ends = ("_total", "_bucket", "_sum", "_count")
    return {series} | {series.removesuffix(end) for end in ends}

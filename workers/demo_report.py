"""What the demo measured: `report.json`, a table, a picture, and whether every stage happened.

Every figure is measured in the run; none is computed from settings. Delays are on broker append times and the wall
clock; recall is over the requests whose target could have been recommended (it had a semantic ID when asked).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.provenance import provenance
from models.evaluation import recall_at_k
from models.lrm import Lrm
from models.prompts import Ask
from models.recommend import Request, recommend
from models.semantic_id import format_semantic_id
from models.trie import LiveTrie
from models.trie_filters import Filters
from streams.events import SemanticIdAssigned
from streams.history import history_entry
from workers.demo import TOP_K, Asked, Played
from workers.demo_observer import Observations
from workers.training_actor import Video

SLICES: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("", lambda earlier: True),
    ("_targets_with_0_watches", lambda earlier: earlier == 0),
    ("_targets_with_1_to_4_watches", lambda earlier: 1 <= earlier <= 4),
)
MIN_REQUESTS = 500
MIN_SWAPS = 3
RETIREMENT_GRACE_MS = 1000  # a replica polls the log five times a second


@dataclass(frozen=True)
class Answered:
    """A request with what the catalogue held when it was asked, and what the frozen model would have said."""

    asked: Asked
    target_servable: bool
    not_live: int
    frozen: tuple[str, ...]


class _LiveThen:
    """What was live at any moment of the run, replayed forward from the log."""

    def __init__(self, frozen: Lrm, assigned: Sequence[tuple[int, SemanticIdAssigned]]) -> None:
        self.trie = LiveTrie(frozen.space)
        self.videos: dict[str, Video] = {}
        self._queue = assigned
        self._place = 0
        self._retired_ms: dict[tuple[str, str], int] = {}

    def advance_to(self, time_ms: int) -> None:
        """Take in what was assigned up to then."""
        batch: dict[str, SemanticIdAssigned] = {}
        while self._place < len(self._queue) and self._queue[self._place][0] <= time_ms:
            appended_ms, one = self._queue[self._place]
            former = self.videos.get(one.video_id)
            if former is not None and former.semantic_id != one.semantic_id:
                pair = (one.video_id, format_semantic_id(former.semantic_id))
                self._retired_ms[pair] = appended_ms
            batch[one.video_id] = one
            self.videos[one.video_id] = Video.of(one)
            self._place += 1
        if batch:
            self.trie.insert_many(
                [one.semantic_id for one in batch.values()],
                list(batch),
                [one.upload_time_ms for one in batch.values()],
            )

    def not_live(self, one: Asked) -> int:
        """Return how many answered pairs of video and semantic ID were not live while the answer was made.

        One that an edit retired within `RETIREMENT_GRACE_MS` before the question counts as live still.
        """
        until_ms = one.asked_at_ms + round(one.seconds * 1000)
        became = {
            (found.video_id, format_semantic_id(found.semantic_id))
            for appended_ms, found in self._queue[self._place : self._place + 1000]
            if appended_ms <= until_ms
        }
        count = 0
        for pair in zip(one.recommended, one.semantic_ids, strict=True):
            video = self.videos.get(pair[0])
            now = video is not None and format_semantic_id(video.semantic_id) == pair[1]
            just = self._retired_ms.get(pair, 0) >= one.asked_at_ms - RETIREMENT_GRACE_MS
            count += not (now or just or pair in became)
        return count


def score_frozen(
    frozen: Lrm,
    asked: Sequence[Asked],
    assigned: Sequence[tuple[int, SemanticIdAssigned]],
    *,
    beam_width: int,
    on_progress: Callable[[float], None] = lambda share: None,
) -> list[Answered]:
    """Ask the never refreshed bootstrap checkpoint every question again, over the videos that were live then.

    `assigned` is in the order of append times; it is replayed up to each question's moment.
    """
    then = _LiveThen(frozen, assigned)
    answered = []
    for number, one in enumerate(sorted(asked, key=lambda each: each.asked_at_ms)):
        then.advance_to(one.asked_at_ms)
        request = Request(
            viewer=None,
            watches=[history_entry(watch) for watch in one.history],
            ask=Ask(one.watch.surface, one.watch.context_video_id),
            filters=Filters(excluded_video_ids=one.excluded),
        )
        found = recommend(
            frozen, [request], then.trie.view, then.videos, top_k=TOP_K, beam_width=beam_width
        )[0]
        answered.append(
            Answered(
                asked=one,
                target_servable=one.watch.video_id in then.videos,
                not_live=then.not_live(one),
                frozen=tuple(candidate.video_id for candidate in found),
            )
        )
        on_progress((number + 1) / len(asked))
    return answered


def build_report(
    seen: Observations,
    played: Played,
    answered: Sequence[Answered],
    *,
    bootstrap: dict[str, Any],
    wall_s: float,
) -> dict[str, Any]:
    """Return what `report.json` holds."""
    stages = list(seen.stage_times())
    live = {one.video_id: one for _, one in seen.assigned}
    # The load of the first model at a replica's start is no swap.
    swapped = [one for one in seen.swaps if one.outcome == "succeeded" and one.previous_version]
    shown = [item for one in seen.impressions for item in one.items]
    ok = [one for one in answered if not one.asked.error]
    return {
        "uploads": played.sent["uploaded"],
        "updates": played.sent["updated"],
        "uploads_without_semantic_id": seen.uploads_without_sid(),
        "watches": played.sent["watched"],
        "semantic_ids_assigned": len(live),
        "unique_semantic_ids": len({one.semantic_id for one in live.values()}),
        "upload_to_sid_s": quantiles(seen.upload_to_sid_s()),
        "upload_to_servable_s": quantiles(seen.upload_to_servable_s()),
        "watch_to_shard_s": quantiles((sealed - watch) / 1000 for watch, sealed, _, _ in stages),
        "shard_to_checkpoint_s": quantiles(
            (learned - sealed) / 1000 for _, sealed, learned, _ in stages
        ),
        "checkpoint_to_serving_s": quantiles(
            (served - learned) / 1000 for _, _, learned, served in stages
        ),
        "watch_to_serving_s": quantiles((served - watch) / 1000 for watch, _, _, served in stages),
        "watches_served": len(stages),
        "shards_sealed": len(seen.shards),
        "watches_in_shards": seen.watches_in_shards(),
        "dead_letters": seen.dead_letters,
        "checkpoints": len(seen.checkpoints),
        "distinct_checkpoints": len({one.sha256 for _, one in seen.checkpoints}),
        "swaps": len(swapped),
        "distinct_swaps": len({swap.sha256 for swap in swapped}),
        "requests": len(answered),
        "requests_failed": len(answered) - len(ok),
        "request_s": quantiles(one.asked.seconds for one in ok),
        "recommended_not_live": sum(one.not_live for one in ok),
        "targets_not_servable": sum(not one.target_servable for one in ok),
        **recalls(ok),
        "new_video_share_of_impressions": sum(item.new for item in shown) / max(1, len(shown)),
        "stream_s": round(played.stream_s, 1),
        "bootstrap": bootstrap,
        "wall_s": round(wall_s, 1),
        **provenance(),
    }


def recalls(answered: Sequence[Answered]) -> dict[str, dict[str, float | int]]:
    """Return recall@10 of each arm on the same requests: all, and by the target's earlier watches."""
    found: dict[str, dict[str, float | int]] = {}
    for suffix, wanted in SLICES:
        some = [
            one for one in answered if one.target_servable and wanted(one.asked.earlier_watches)
        ]
        targets = [one.asked.watch.video_id for one in some]
        arms: dict[str, list[tuple[str, ...]]] = {
            "lrm": [one.asked.recommended for one in some],
            "popularity": [one.asked.popular for one in some],
            "lrm_frozen": [one.frozen for one in some],
        }
        found[f"recall_at_10{suffix}"] = {
            **{arm: round(recall_at_k(ranked, targets), 4) for arm, ranked in arms.items()},
            "targets": len(targets),
        }
    return found


def quantiles(values: Iterable[float]) -> dict[str, float | None]:
    """Return p50 and p99 in seconds; None where nothing was measured."""
    numbers = list(values)
    if not numbers:
        return {"p50": None, "p99": None}
    p50, p99 = np.quantile(numbers, [0.5, 0.99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def missing_stages(report: dict[str, Any], *, min_requests: int, min_swaps: int) -> list[str]:
    """Return, in words, what did not happen that must; an empty list is success."""
    wrong = {
        "no upload was sent": report["uploads"] == 0,
        "two live videos share a semantic ID": report["unique_semantic_ids"]
        != report["semantic_ids_assigned"],
        f"{report['uploads_without_semantic_id']} uploads have no semantic ID": report[
            "uploads_without_semantic_id"
        ]
        > 0,
        "no upload got a semantic ID": report["upload_to_sid_s"]["p50"] is None,
        "no upload became servable": report["upload_to_servable_s"]["p50"] is None,
        f"{report['watches_in_shards']} of {report['watches']} watches are in shards": report[
            "watches"
        ]
        != report["watches_in_shards"],
        f"{report['watches_served']} of {report['watches']} watches came all the way to serving": report[
            "watches_served"
        ]
        != report["watches"],
        f"{report['dead_letters']} records were refused": report["dead_letters"] > 0,
        f"{report['distinct_swaps']} swaps to distinct weights, expected {min_swaps}": report[
            "distinct_swaps"
        ]
        < min_swaps,
        f"{report['requests']} requests, expected {min_requests}": report["requests"]
        < min_requests,
        f"{report['requests_failed']} requests failed": report["requests_failed"] > 0,
        f"{report['recommended_not_live']} recommended videos were not live": report[
            "recommended_not_live"
        ]
        > 0,
    }
    return [words for words, happened in wrong.items() if happened]


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write `report.json`."""
    path.write_text(json.dumps(report, indent=2) + "\n")

"""Each promise of a soak, broken once: the verdict names it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from streams.events import OffsetRange, ShardSealed
from streams.topics import UPLOADS, WATCHES
from tests.soak.asking import FORGET_S, Asked, fault_of
from tests.soak.kills import Killed
from tests.soak.ledger import Seen, Sent
from tests.soak.verdicts import (
    answered_badly,
    excused,
    figures_of,
    figures_stopped,
    lost,
    metrics_missing,
    not_back,
    not_learned,
    not_refused,
)

MODELS = ("lrm", "two_tower_hash")


def shard(number: int, first: int, last: int, *, duplicates: int = 0) -> ShardSealed:
    count = last - first + 1
    return ShardSealed(
        shard_id=f"shard-{number}", path="", sha256="",
        ranges=(OffsetRange(partition=0, first_offset=first, last_offset=last),),
        rows=count - duplicates, watches=count - duplicates, duplicates=duplicates, dead_letters=0,
        first_event_time_ms=1, last_event_time_ms=1, first_append_time_ms=1, last_append_time_ms=1, sealed_time_ms=1,
    )  # fmt: skip


def all_well() -> tuple[Sent, Seen]:
    """Two uploads, one of them removed, five watches of which one came twice, in two shards that all learned."""
    sent, seen = Sent(), Seen()
    sent.uploads = {(0, 0): "a", (0, 1): "b"}
    sent.removals = {(0, 2): "a"}
    sent.bad_uploads = {(0, 3): "invalid_json"}
    sent.watches = {(0, offset) for offset in range(5)}
    sent.duplicates = {(0, 5)}
    sent.bad_watches = {(1, 0): "invalid_event"}
    seen.servable, seen.removed = {"a": 1, "b": 1}, {"a": 1.0}
    seen.letters[UPLOADS.name][0, 3] = ["invalid_json", "invalid_json"]
    seen.letters[WATCHES.name][1, 0] = ["invalid_event"]
    seen.shards = {0: shard(0, 0, 2), 1: shard(1, 3, 5, duplicates=1)}
    seen.in_shards = Counter(sent.watches)
    for name in MODELS:
        seen.learned[name] = Counter(["shard-0", "shard-1"])
        seen.versions[name] = [1, 2, 3]
    return sent, seen


def problems(sent: Sent, seen: Seen) -> list[str]:
    return lost(sent, seen) + not_refused(sent, seen) + not_learned(seen, MODELS)


def test_run_in_which_all_went_well_has_no_problems() -> None:
    assert problems(*all_well()) == []


def one_problem(sent: Sent, seen: Seen) -> str:
    (found,) = problems(sent, seen)
    return found


def test_lost_upload_is_named() -> None:
    sent, seen = all_well()
    del seen.servable["b"]
    assert one_problem(sent, seen) == "1 uploads are not servable: b"


def test_removal_without_a_tombstone_is_named() -> None:
    sent, seen = all_well()
    seen.removed.clear()
    assert "removals have no tombstone: a" in one_problem(sent, seen)


def test_lost_watch_is_named() -> None:
    sent, seen = all_well()
    del seen.in_shards[0, 4]
    assert one_problem(sent, seen) == "1 watches are in no shard: (0, 4)"


def test_watch_in_two_shards_is_named() -> None:
    sent, seen = all_well()
    seen.in_shards[0, 4] += 1
    assert "watches are in several shards: (0, 4)" in one_problem(sent, seen)


def test_duplicate_that_was_taken_for_a_watch_is_named() -> None:
    sent, seen = all_well()
    seen.in_shards[0, 5] += 1
    assert "never sent, or not as such: (0, 5)" in one_problem(sent, seen)


def test_gap_between_shards_is_named() -> None:
    sent, seen = all_well()
    seen.shards[1] = shard(1, 4, 5, duplicates=1)
    assert "leaves a gap" in one_problem(sent, seen)


def test_record_that_was_not_acknowledged_is_named() -> None:
    sent, seen = all_well()
    sent.failures.append("watch.events: timed out")
    assert one_problem(sent, seen) == "watch.events: timed out"


def test_broken_record_without_a_dead_letter_is_named() -> None:
    sent, seen = all_well()
    del seen.letters[UPLOADS.name][0, 3]
    assert "broken records of video.uploads are no dead letters" in one_problem(sent, seen)


def test_broken_record_with_another_reason_is_named() -> None:
    sent, seen = all_well()
    seen.letters[WATCHES.name][1, 0] = ["empty"]
    assert "dead letters of watch.events have another reason" in one_problem(sent, seen)


def test_sound_record_that_was_refused_is_named() -> None:
    sent, seen = all_well()
    seen.letters[UPLOADS.name][0, 0] = ["media_unavailable"]
    assert "sound records of video.uploads are dead letters: (0, 0)" in one_problem(sent, seen)


def test_watch_that_is_a_dead_letter_twice_is_named() -> None:
    sent, seen = all_well()
    seen.letters[WATCHES.name][1, 0] *= 2
    assert "dead letters twice" in one_problem(sent, seen)


def test_shard_that_a_model_did_not_learn_is_named() -> None:
    sent, seen = all_well()
    del seen.learned["two_tower_hash"]["shard-1"]
    assert one_problem(sent, seen) == "1 shards are not learned by two_tower_hash: shard-1"


def test_shard_that_a_model_learned_twice_is_named() -> None:
    sent, seen = all_well()
    seen.learned["lrm"]["shard-1"] += 1
    assert "learned twice by lrm" in one_problem(sent, seen)


def test_checkpoint_that_nobody_looked_at_is_named() -> None:
    sent, seen = all_well()
    seen.versions["lrm"] = [1, 3]
    assert "checkpoints of lrm were gone" in one_problem(sent, seen)


def asked(sent_s: float, status: int = 200, *, took_s: float = 0.1) -> Asked:
    return Asked(sent_s, sent_s + took_s, status)


def test_requests_may_fail_from_the_kill_of_who_answers_until_one_is_answered() -> None:
    killed = [Killed("serve", 1, at_s=10.0), Killed("uploads", 2, at_s=50.0)]
    answers = [asked(5), asked(11, 0), asked(20, 503), asked(21)]
    assert excused(killed, answers) == [(10.0, 21.1)]
    assert answered_badly(answers, killed) == []


@pytest.mark.parametrize("at_s", [8.0, 22.0, 51.0])
def test_request_that_fails_while_nobody_who_answers_is_dead_is_found(at_s: float) -> None:
    killed = [Killed("serve", 1, at_s=10.0), Killed("uploads", 2, at_s=50.0)]
    answers = [asked(5), asked(21), asked(at_s, 503)]
    assert "failed while nobody who answers was dead" in answered_badly(answers, killed)[0]


def test_replicas_that_outlive_the_kill_of_ray_for_a_moment_are_no_end_of_the_outage() -> None:
    killed = [Killed("gcs_server", 1, at_s=10.0)]
    answers = [
        asked(11),
        asked(17, 0),
        asked(18),
        asked(20, 0),
        asked(60, 503),
        asked(70),
        asked(71),
    ]
    assert excused(killed, answers) == [(10.0, 70.1)]
    assert answered_badly(answers, killed) == []
    assert answered_badly([*answers, asked(80, 503)], killed) != []


def test_requests_that_are_never_answered_again_are_found() -> None:
    assert answered_badly([asked(11, 0)], [Killed("serve", 1, at_s=10.0)]) != []


def test_refusal_for_want_of_time_is_polite_and_any_other_is_not() -> None:
    assert answered_badly([asked(1), asked(2, 429)], []) == []
    assert "refused as if they were wrong" in answered_badly([asked(1), asked(2, 422)], [])[0]


def items(*video_ids: str) -> dict[str, Any]:
    return {"items": [{"video_id": one} for one in video_ids]}


LIVE = float("inf")


def test_answer_of_known_live_videos_is_right() -> None:
    assert fault_of(items("a", "b"), is_known={"a": LIVE, "b": 99.0}, asked_s=100.0) == ""


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (items(), "no videos"),
        (items("a", "a"), "twice"),
        (items("x"), "nobody ever uploaded x"),
        (items("gone"), "gone was removed"),
        (items("a", "b", "c"), "2 were asked for"),
    ],
)
def test_wrong_answer_is_found(answer: dict[str, Any], fault: str) -> None:
    known = {"a": LIVE, "b": LIVE, "c": LIVE, "gone": 100.0 - FORGET_S - 1}
    assert fault in fault_of(answer, is_known=known, asked_s=100.0, k=2)


FIGURES = {"written_time_ms": 1, "event_time_ms": 1, "impressions": 1, "swaps": 1, "semantic IDs": 1}  # fmt: skip


def test_figures_that_moved_since_the_kill_flow() -> None:
    assert figures_stopped(FIGURES, {name: 2.0 for name in FIGURES}) == []


@pytest.mark.parametrize("name", FIGURES)
def test_figure_that_stood_still_since_the_kill_is_named(name: str) -> None:
    after = {each: 2.0 for each in FIGURES} | {name: 1.0}
    assert f"{name} did not move" in figures_stopped(FIGURES, after)[0]


def test_figure_that_nobody_knows_is_named() -> None:
    after = {name: 2.0 for name in FIGURES} | {"coverage": None}
    assert figures_stopped(FIGURES, after) == ["no figure: coverage"]


def test_figures_of_a_report_are_all_that_the_dashboard_goes_by() -> None:
    arm = dict.fromkeys(
        ("shown_share", "reached_share", "effective_vocabulary", "clicks_per_impression", "likes_per_impression"), 1.0
    ) | {"time_to_threshold_s": {"p50": None}}  # fmt: skip
    report = {
        "written_time_ms": 1, "event_time_ms": 1, "impressions": 1, "coverage": 0.5, "swaps": 1,
        "cold_start": {"arms": {"lrm": arm}}, "delays_s": {"upload_to_sid": {"p50": 1.0}},
        "model_age_s": {"lrm": 1.0},
        "codebook": {"videos": 3, "unique_share": 1.0, "usage": [{"level": 0, "perplexity": 2.0}]},
    }  # fmt: skip
    found = figures_of(report)
    assert found["time_to_threshold_s of lrm"] is None
    assert found["delay upload_to_sid"] == 1.0
    assert len(found) == 5 + 6 + 1 + 1 + 3
    late: Any = {"cold_start": {"arms": {"lrm": arm | {"reached_share": 0.0}}}}
    assert "time_to_threshold_s of lrm" not in figures_of(report | late)
    assert figures_of(report | late)["time_to_threshold_s of any arm"] is None
    late["cold_start"]["arms"]["two_tower_hash"] = arm | {"time_to_threshold_s": {"p50": 7.0}}
    assert "time_to_threshold_s of any arm" not in figures_of(report | late)


def test_victim_that_nobody_replaced_is_named() -> None:
    assert not_back([Killed("serve", 7, 1.0, back_s=2.0)]) == []
    assert "serve (7)" in not_back([Killed("serve", 7, 1.0)])[0]


def test_metric_that_nobody_exposes_is_named_and_a_recorded_one_is_not_asked_for() -> None:
    exposed = {"freshet_records_total", "freshet_delay_seconds"}
    asked_for = {
        "freshet_records_total",
        "freshet_delay_seconds_bucket",
        "up",
        "slo:errors:ratio1h",
    }
    assert metrics_missing(asked_for, exposed) == []
    assert metrics_missing({"freshet_gone"}, exposed) == ["no process exposes freshet_gone"]

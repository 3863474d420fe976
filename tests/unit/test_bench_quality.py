"""The quality benchmark: what is asked of whom, what it makes of the answers, and the page it keeps."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from infra.errors import ConfigError, GateError
from models.examples import Block
from models.next_item import NextItemTraining
from models.sasrec import SasrecConfig, build_sasrec
from models.tasks import video_texts, watch_texts
from models.training import TrainingConfig
from streams.events import VideoUploaded, WatchEvent
from streams.timeline import Timeline, on_timeline
from tests.bench import quality
from tests.bench.parts import quality_arms, quality_films
from tests.bench.parts.cpu_training import CpuBudget, in_steps
from tests.bench.parts.quality_arms import LrmArm, NextItemArm, PopularityArm
from tests.bench.parts.quality_beauty import Scores
from tests.bench.parts.quality_budget import BUDGETS, budget_of
from tests.bench.parts.quality_figures import Asked, ndcg, recall
from tests.bench.parts.quality_films import HISTORIES_ONLY, FilmsResult
from tests.bench.parts.quality_stream import Target
from tests.bench.parts.quality_tables import ARMS, page
from tests.lrm_factories import new_watch, some_videos
from tests.quality_factories import (
    NUM_ITEMS,
    STREAM,
    some_rounds,
    some_state,
)
from workers.training_state import TrainingState

PROVENANCE = {
    "hardware": {"cores": 2.0, "cpu": "A processor"},
    "versions": {"python": "3.11.7", "torch": "2.0", "typer": "1.0"},
    "commit": "c0ffee",
}


def test_every_later_watch_is_asked_for_once_with_what_was_known_of_its_item() -> None:
    counts = Counter(STREAM.numbers[user][index] for user, index in STREAM.order[:24])
    asked = sorted(
        (one for each in some_rounds() for one in each.targets), key=lambda one: one.event
    )
    assert [one.event for one in asked] == list(range(24, 60))
    for one in asked:
        assert (one.user_id, one.index) == STREAM.order[one.event]
        assert one.number == STREAM.numbers[one.user_id][one.index] < one.num_live
        uploaded = [
            at for at in STREAM.catalogue.upload_times_ms if at <= STREAM.watched_at_ms(one.event)
        ]
        assert one.num_live == len(uploaded)
        assert one.earlier_watches == counts[one.number]
        counts[one.number] += 1


def test_weights_of_a_sample_add_up_to_the_rounds_watches_and_its_strata() -> None:
    for whole, drawn in zip(some_rounds(), some_rounds(per_stratum=2), strict=True):
        assert sum(one.weight for one in drawn.targets) == pytest.approx(12)
        for stratum in ("0", "1-4", "5-10", "more"):
            members = [one for one in whole.targets if one.watched_stratum == stratum]
            sample = [one for one in drawn.targets if one.watched_stratum == stratum]
            assert len(sample) == min(2, len(members))
            assert sum(one.weight for one in sample) == pytest.approx(len(members))


def test_strata_begin_where_their_names_say() -> None:
    def target(watches: int, index: int) -> Target:
        return Target("u", index, 0, 1, watches, 0)

    found = [target(count, 0).watched_stratum for count in (0, 1, 4, 5, 10, 11)]
    assert found == ["0", "1-4", "1-4", "5-10", "5-10", "more"]
    assert [target(0, index).history_stratum for index in (0, 1, 5, 6)] == [
        "0",
        "1-5",
        "1-5",
        "more",
    ]


def test_rounds_rows_hold_their_watches_once_behind_the_users_history() -> None:
    learned: Counter[str] = Counter()
    for this in some_rounds():
        for row in this.rows:
            before = len(row.history)
            everything = STREAM.by_user[row.user_id]
            assert [*row.history, *row.watches] == everything[: before + len(row.watches)]
            learned.update(watch.event_id for watch in row.watches)
    assert learned == Counter(f"e{at}" for at in range(24, 60))


def arm_of(name: str) -> quality_arms.Arm:
    if name == "lrm":
        return LrmArm(name, some_state(), STREAM)
    if name == "popularity":
        return PopularityArm(name, STREAM, newest=20, start=24)
    model = build_sasrec(
        NUM_ITEMS // 2, config=SasrecConfig(hidden_size=8, num_blocks=1, num_heads=1, history_max=6)
    )
    training = NextItemTraining(positions_per_step=64)
    return NextItemArm(name, model, STREAM, training=training, passes=1, seed=0)


@pytest.mark.parametrize("name", ["lrm", "sasrec", "popularity"])
def test_arms_rank_only_what_was_uploaded_and_is_not_watched_and_learn(name: str) -> None:
    arm = arm_of(name)
    for this in some_rounds():
        for target, found in zip(this.targets, arm.rank(this.targets, this), strict=True):
            watched = STREAM.numbers[target.user_id][: target.index]
            assert len(found) == len(set(found)) == min(10, target.num_live - len(watched))
            assert not set(found) & set(watched)
            assert max(found) < target.num_live
        arm.learn(this)


def test_popularity_counts_the_newest_watches_and_the_round_only_once_it_is_learned() -> None:
    arm = PopularityArm("popularity", STREAM, newest=5, start=24)
    [this, following, _] = some_rounds()
    newest = [STREAM.numbers[user][index] for user, index in STREAM.order[19:24]]
    assert list(arm._window) == newest
    arm.rank(this.targets, this)
    assert list(arm._window) == newest
    arm.learn(this)
    assert list(arm._window) == [STREAM.numbers[user][index] for user, index in STREAM.order[31:36]]
    assert following.targets[0].event >= 36


def weights_of(state: TrainingState) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in state.lrm.model.parameters()]


def test_frozen_lrm_stays_and_refreshed_lrm_moves() -> None:
    for is_frozen in (True, False):
        state = some_state()
        before = weights_of(state)
        LrmArm("lrm", state, STREAM, is_frozen=is_frozen).learn(some_rounds()[0])
        after = weights_of(state)
        assert all(map(torch.equal, before, after)) == is_frozen


def test_round_that_a_gate_refuses_is_counted_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    state = some_state()
    arm = LrmArm("lrm", state, STREAM)
    [first, second, _] = some_rounds()
    arm.learn(first)
    before = weights_of(state)

    def refuse(*_: object) -> float:
        raise GateError("worse", "anchor_loss")

    monkeypatch.setattr("workers.training_round.pass_gates", refuse)
    arm.learn(second)
    assert arm.refused == 1
    assert all(map(torch.equal, before, weights_of(state)))


def test_figures_are_weighted_means_over_the_targets_kept() -> None:
    asked = [
        Asked(Target("u", 0, 0, 1, 0, 0, weight=3.0), {"a": 0}),
        Asked(Target("u", 1, 0, 1, 7, 1, weight=1.0), {"a": None}),
    ]
    assert recall(asked, "a")[::2] == (0.75, 2)
    assert recall(asked, "a", of=lambda target: target.earlier_watches > 0).mean == 0
    assert recall(asked, "a", of=lambda target: False) == (0.0, 0.0, 0)
    third = [Asked(Target("u", 0, 0, 1, 0, 0), {"a": 2})]
    assert ndcg(third, "a").mean == pytest.approx(0.5)
    equal = [Asked(Target("u", 0, 0, 1, 0, 0), {"a": place}) for place in (0, None) * 50]
    assert recall(equal, "a").error == pytest.approx(0.05)


def test_only_what_happens_within_counts_as_spent() -> None:
    def work() -> None:
        sum(number * number for number in range(400_000))

    budget = CpuBudget(1000.0)
    work()
    assert budget.share == 0
    with budget:
        work()
        assert 0 < budget.share < 1
    spent_s = budget.spent_s
    work()
    assert budget.spent_s == spent_s > 0
    assert CpuBudget(0.0).share == 1


def test_epochs_are_cut_into_few_steps_without_loss() -> None:
    config = TrainingConfig(blocks_per_step=2)
    tensor = torch.zeros(1)
    blocks = [Block(tensor, tensor, tensor, tensor, tensor) for _ in range(37)]
    parts = list(in_steps(iter([blocks, blocks[:3]]), config))
    assert [len(part) for part in parts] == [16, 16, 5, 3]
    assert parts[0] + parts[1] + parts[2] == blocks


def streamed() -> FilmsResult:
    """Targets of every stratum, of which the refreshed LRM finds all and popularity none."""
    asked = [
        Asked(
            Target("u", at % 8, 0, 1, at % 13, 100 + at),
            {arm: None if arm == quality_films.POPULARITY else 0 for arm in ARMS},
        )
        for at in range(60)
    ]
    notes = dict.fromkeys(
        ("first_watches", "later_watches", "first_items", "items", "round_watches"), 9
    )
    return FilmsResult(asked, 10.0, {ARMS[0]: 5.0}, {ARMS[0]: 1}, 5000, notes)


SCORES = [
    Scores("SASRec-CE", 0.05, 0.03, 0.08, 0.04, 100, 7.0, 1.0, (0.1, 0.2)),
    Scores("nano LRM", 0.04, 0.02, 0.06, 0.03, 100, 7.0, 0.5, (0.2, 0.1)),
]


def test_measures_divide_the_refreshed_lrm_by_each_peer() -> None:
    found = {each.measure: each for each in quality.measures(streamed(), SCORES)}
    assert list(found) == [
        "refreshed_over_frozen", "refreshed_over_sasrec", "refreshed_over_popularity",
        "unwatched_targets_recall_at_10", "rare_targets_over_sasrec", "cluster_ids_over_hash_ids",
        "beauty_recall_at_10", "beauty_over_sasrec", "nano_cpt_over_none",
    ]  # fmt: skip
    assert found["refreshed_over_frozen"].value == found["refreshed_over_frozen"].peer_value == 1
    assert found["refreshed_over_popularity"].value == 0  # nothing to divide by
    beauty = found["beauty_recall_at_10"]
    assert (beauty.value, beauty.peer_value, beauty.peer) == (0.06, 0.08, "SASRec-CE")
    assert found["beauty_over_sasrec"].value == pytest.approx(0.75)


def test_page_has_whole_tables_and_names_budget_machine_and_sources() -> None:
    text = page(streamed(), SCORES, BUDGETS["cpu"], PROVENANCE)
    for table in text.split("\n\n"):
        cells = [line.count("|") for line in table.splitlines() if line.startswith("|")]
        assert len(set(cells)) <= 1
    for words in ("`cpu`", "A processor", "c0ffee", "Rajput et al. 2023", "1 of LRM, refreshed"):
        assert words in text
    assert "| TIGER, as published | 0.0454 | 0.0321 | 0.0648 | 0.0384 | - |" in text
    assert "comparable with nothing" not in text
    assert "comparable with nothing" in page(streamed(), SCORES, budget_of("cpu", 0.1), PROVENANCE)


def test_share_of_a_budget_is_smaller_in_data_and_time() -> None:
    tenth = budget_of("cpu", 0.1)
    assert tenth.data_share == 0.1
    assert tenth.beauty_cpu_s == pytest.approx(BUDGETS["cpu"].beauty_cpu_s / 10)
    assert budget_of("full", 1) == BUDGETS["full"]


def test_first_users_of_a_timeline_keep_their_watches_and_what_they_watched() -> None:
    uploads = [
        VideoUploaded(event_id=f"u{n}", event_time_ms=n, video_id=f"v{n}", title="x")
        for n in range(4)
    ]
    watches = [
        WatchEvent(
            event_id=f"w{n}", event_time_ms=10 + n, user_id=f"u{n}", video_id=f"v{n}",
            surface="home", watched_s=1.0, duration_s=1.0,
        )
        for n in range(4)
    ]  # fmt: skip
    events: list[VideoUploaded | WatchEvent] = [*uploads, *watches]
    timeline = Timeline(tuple(map(on_timeline, events)))
    kept = quality._first_users(timeline, 0.5)
    assert [each.event.event_id for each in kept.events] == ["u0", "u1", "w0", "w1"]


def test_folder_that_is_not_set_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FRESHET_DATA__BEAUTY", raising=False)
    with pytest.raises(ConfigError, match="FRESHET_DATA__BEAUTY"):
        quality.measure()


def test_arm_without_metadata_reads_histories_and_no_other_text() -> None:
    video = some_videos()["v1"]
    assert list(video_texts([video], HISTORIES_ONLY, random.Random(0))) == []
    watches = [new_watch("v1"), new_watch("v2")]
    texts = watch_texts(None, [], watches, some_videos(), HISTORIES_ONLY, random.Random(0))
    assert list(texts) == []

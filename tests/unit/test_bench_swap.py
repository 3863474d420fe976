from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from infra.errors import FreshetError
from infra.storage import ObjectStore
from models.lrm import TINY, WEIGHTS, load_lrm
from models.prompts import Ask
from models.recommend import Request, recommend
from models.semantic_id import format_semantic_id
from models.trie import LiveTrie
from serve.model_slots import ModelSlots
from serve.views import CatalogueView, EventClock
from streams.events import SwapReported, to_json
from streams.history import decode_history
from tests.bench import swap
from tests.bench.parts.bad_checkpoints import SPOILED
from tests.bench.parts.recomputed import Recomputed
from tests.bench.parts.serving_stage import SPACE, Checkpoints, World
from tests.http_answer_factories import answer, answers

WORLD = World(200, 5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def checkpoints(store: Path) -> Checkpoints:
    return Checkpoints(WORLD, store, TINY)


def test_versions_have_weights_of_their_own_and_the_same_version_the_same(
    checkpoints: Checkpoints,
) -> None:
    hashes = [checkpoints.write(version).sha256 for version in (2, 3, 2)]
    assert hashes[0] == hashes[2] != hashes[1]
    assert checkpoints.first.sha256 not in hashes


@pytest.mark.parametrize("kind", SPOILED)
def test_spoiled_checkpoint_is_refused_by_the_slots_and_a_good_one_is_not(
    kind: str, checkpoints: Checkpoints, store: Path, tmp_path: Path
) -> None:
    slots = ModelSlots(
        ObjectStore(str(store)),
        CatalogueView(SPACE, EventClock()),
        replica="r",
        cache=tmp_path,
        beam_width=4,
    )
    good, bad = checkpoints.first, checkpoints.write(100 + list(SPOILED).index(kind))
    (kept,) = slots.follow([good])
    (refused,) = slots.follow([SPOILED[kind](bad, store)])
    assert (kept.outcome, refused.outcome) == ("succeeded", "rejected")
    assert slots.lrm is not None
    assert slots.lrm.model_version == good.model_version


def test_answer_agrees_with_the_version_that_gave_it_and_with_no_other(
    checkpoints: Checkpoints, store: Path
) -> None:
    versions = {version: checkpoints.write(version) for version in (4, 5)}
    videos = {video.video_id: video for video in WORLD.videos}
    trie = LiveTrie(SPACE)
    for video in WORLD.videos:
        trie.insert(video.semantic_id, video.video_id, 0)
    recomputed = Recomputed(store, versions, videos, WORLD.histories)
    request = WORLD.requests()[1]
    assert request["surface"] == "watch_next"
    history = decode_history(to_json(WORLD.histories[request["user_id"]]))[1]
    ask = Ask(request["surface"], request["context_video_id"])
    found = recommend(
        load_lrm(store / versions[4].path),
        [Request(None, history.entries, ask)],
        trie.view,
        videos,
        top_k=10,
        beam_width=10,
    )[0]
    items = [
        {"semantic_id": format_semantic_id(one.semantic_id), "score": one.log_prob} for one in found
    ]
    assert recomputed.agrees(request, items, 4)
    assert not recomputed.agrees(request, items, 5)


def test_p99_is_compared_pair_by_pair_and_the_median_pair_counts() -> None:
    windows = [(0.0, 10.0, 20.0), (20.0, 30.0, 40.0), (40.0, 50.0, 60.0)]
    sent = [
        one
        for (quiet, swaps, _), ratio in zip(windows, (1.1, 9.0, 1.3), strict=True)
        for one in (*answers(100, 0.1, from_s=quiet), *answers(100, 0.1 * ratio, from_s=swaps))
    ]
    assert swap.p99_over_steady(sent, windows) == pytest.approx(1.3)


def test_answers_beside_a_load_are_those_that_overlap_it() -> None:
    report = SwapReported(
        replica="r",
        model_name="lrm",
        model_version=2,
        previous_version=1,
        outcome="succeeded",
        reason="",
        sha256="",
        swapped_time_ms=10_000,
        load_s=2.0,
    )
    sent = [answer(at, 0.5) for at in (7.0, 7.6, 8.5, 9.9, 10.1)]
    beside, alone = swap.beside_loads(sent, [report])
    assert [one.sent_s for one in beside] == [7.6, 8.5, 9.9]
    assert [one.sent_s for one in alone] == [7.0, 10.1]


def test_rollback_ends_when_no_request_sent_from_then_on_gets_the_version_taken_back() -> None:
    sent = [
        answer(9.0, version=7),
        answer(10.2, 0.9, version=7),
        answer(10.3, version=6),
        answer(10.4, 0.3, version=7),
        answer(10.5, version=6),
        answer(12.0, code=500),
    ]
    assert swap.rollback_s(sent, 10.0, 7) == pytest.approx((0.5, 1.1))
    assert swap.rollback_s(sent[-2:], 10.0, 7) == (0, 0)
    with pytest.raises(FreshetError, match="still answers"):
        swap.rollback_s(sent[:2], 10.0, 7)


def test_answer_of_a_version_before_it_was_promoted_or_that_never_was_is_impossible(
    checkpoints: Checkpoints,
) -> None:
    promoted = swap.Promoted({1: checkpoints.first}, {1: 0.0, 2: 50.0})
    assert swap.is_possible(answer(10.0), promoted)
    assert swap.is_possible(answer(49.99, 0.5, version=2), promoted)
    assert not swap.is_possible(answer(40.0, version=2), promoted)
    assert not swap.is_possible(answer(60.0, version=3), promoted)
    assert swap.is_possible(answer(60.0, version=0, sources=("popularity",)), promoted)


def test_process_is_seen_reading_what_it_has_open_and_nothing_else(tmp_path: Path) -> None:
    myself = psutil.Process()
    file = tmp_path / "checkpoint" / WEIGHTS
    file.parent.mkdir()
    file.write_bytes(b"x")
    assert not swap.reads(myself, f"{file.parent}/")
    with file.open():
        assert swap.reads(myself, f"{file.parent}/")
        assert not swap.reads(myself, f"{tmp_path}/other/")

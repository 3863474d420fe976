"""The searches behind the offline table: what is asked, and that a video is not its own neighbour."""

from __future__ import annotations

from typing import Any

import pytest

from models.beam_search import beam_search
from models.related import question_about, related_videos
from models.tasks import DAY_MS, render_related
from models.trie import LiveTrie
from tests.lrm_factories import SPACE, some_videos, tiny_lrm

VIDEOS = some_videos()
LRM = tiny_lrm()


def live(ids: list[str]) -> LiveTrie:
    trie = LiveTrie(SPACE)
    trie.insert_many([VIDEOS[one].semantic_id for one in ids], ids, [0] * len(ids))
    return trie


def test_answers_are_the_best_of_all_without_the_video_itself() -> None:
    view = live(list(VIDEOS)).view
    contexts = [(video_id, render_related(VIDEOS[video_id], 0)) for video_id in ("v0", "v5", "v23")]
    found = related_videos(LRM, contexts, view, top_k=23, beam_width=24)
    everything = beam_search(
        LRM.model, [LRM.encode(prompt) for _, prompt in contexts], [view] * 3,
        level_token_ids=LRM.level_token_ids, beam_width=24, top_k=24, pad_token_id=LRM.pad_token_id,
    )  # fmt: skip
    for (video_id, _), related, candidates in zip(contexts, found, everything, strict=True):
        best = [one for one in candidates if one.video_id != video_id]
        assert len(best) == 23
        assert [one for one, _ in related] == [one.video_id for one in best]
        assert [log_prob for _, log_prob in related] == pytest.approx(
            [one.log_prob for one in best], abs=1e-5
        )


def test_wanted_number_comes_out_whether_the_video_itself_is_among_the_best_or_not() -> None:
    for only in (["v0"], ["v0", "v1", "v2"], ["v1", "v2", "v3"]):
        found = related_videos(LRM, [("v0", "watch_next:")], live(only).view, top_k=2, beam_width=1)
        others = set(only) - {"v0"}
        assert len(found[0]) == min(2, len(others))
        assert {video_id for video_id, _ in found[0]} <= others


def question(video: Any, *, now_ms: int = 0, top_k: int = 5, beam_width: int = 6) -> int:
    return question_about(
        "v0", video, now_ms=now_ms, top_k=top_k, beam_width=beam_width
    ).fingerprint


def test_fingerprint_follows_the_prompt_and_the_search_and_nothing_else() -> None:
    video = VIDEOS["v0"]
    same = question(video)
    assert question(video, now_ms=DAY_MS // 2) == same  # the same bucket of age
    others = [
        question(video, now_ms=8 * DAY_MS),
        question(video._replace(title="Another")),
        question(video._replace(channel="Another")),
        question(video._replace(semantic_id=(1, 1, 1, 1))),
        question(video._replace(duration_s=59.0)),
        question(video, top_k=6),
        question(video, beam_width=7),
    ]
    assert len({same, *others}) == 8
    assert question(video._replace(topics=("Another",))) == same  # no part of the prompt

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from streams.events import to_json
from tests.unit.workers.freshness_events import counts, promoted, shown_videos
from workers.video_reach import learned_by, shown_by, watched_in


class KeptMessage:
    """A record as the client gives it."""

    def __init__(self, event: BaseModel | None, key: bytes = b"") -> None:
        self._value, self._key = None if event is None else to_json(event), key

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> bytes:
        return self._key


def message(event: BaseModel | None, key: bytes = b"") -> Any:
    return KeptMessage(event, key)


@pytest.mark.parametrize(
    ("model_name", "next_offset", "learned"),
    [("lrm", 8, True), ("lrm", 7, False), ("two_tower_hash", 8, False)],
)
def test_text_is_learned_by_an_lrm_that_read_beyond_its_record(
    model_name: str, next_offset: int, learned: bool
) -> None:
    event = promoted(5, 1, model_name=model_name, next_semantic_id_offsets={1: next_offset})
    assert ("lrm 5" in (learned_by((1, 7), message(event)) or "")) is learned
    assert learned_by(None, message(event)) is None


def test_answer_that_holds_the_video_says_who_showed_it() -> None:
    event = shown_videos({"w": True, "v\u00e9": False}, arm="lrm_fresh", surface="search")
    assert (
        shown_by("v\u00e9", message(event)) == "by lrm_fresh on search, place 2, from lrm, model 1"
    )
    assert shown_by("v", message(event)) is None
    assert shown_by("absent", message(event)) is None


def test_counts_of_the_video_say_how_often_it_was_watched() -> None:
    event = counts("v", 0, 3)
    assert (
        watched_in(b"v", message(event, b"v"))
        == "3 views on home of lrm in the first shard with any"
    )
    assert watched_in(b"v", message(event, b"w")) is None
    assert watched_in(b"v", message(counts("v", 0, 0), b"v")) is None


def test_tombstone_says_nothing() -> None:
    assert learned_by((0, 0), message(None)) is None
    assert shown_by("v", message(None)) is None
    assert watched_in(b"", message(None)) is None

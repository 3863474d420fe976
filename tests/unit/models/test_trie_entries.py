"""The trie's entries: merges that fail, what is merged when, and numbers of languages."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from models.trie import LiveTrie, TrieView
from models.trie_filters import Filters
from models.trie_segments import Base, merged
from tests.unit.models.test_trie import LARGE_SPACES, SPACES, WIDEST, Row, insert, random_rows


def test_languages_beyond_the_last_number_count_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.trie_entries.LANGUAGES_MAX", 3)
    trie = LiveTrie(SPACES[0])
    trie.insert_many([(0, 0, 0), (1, 0, 0)], ["a", "b"], [1, 1], languages=["en", "de"])
    for _ in range(2):
        trie.insert((2, 0, 0), "c", 1, language="fr")
        assert trie.view.some_video_ids(9) == ["a", "b", "c"]
        assert trie.view.filtered(Filters(languages=["fr"])).some_video_ids(9) == []
        assert trie.view.filtered(Filters(languages=["de", "fr"])).some_video_ids(9) == ["b"]
        trie.settle()


def test_summaries_keep_a_rare_language_apart_from_the_first() -> None:
    trie = LiveTrie(WIDEST)
    languages = [f"l{number}" for number in range(1, 100)]
    keys = [(number, 0, 0) for number in range(len(languages))]
    trie.insert_many(keys, list(map(str, range(len(keys)))), [1] * len(keys), languages=languages)
    entries = trie._entries
    masks = [int(entries.sieve([Filters(languages=[one])])[1].languages) for one in languages]
    assert masks == [1 << min(number, 63) for number in range(1, 100)]
    trie.settle()
    assert int(entries.state.base.segment.languages_S[0]) == (1 << 64) - 2


class Failing:
    """Stands in for `merged`, and fails while it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails, self.calls = True, 0
        monkeypatch.setattr("models.trie_entries.merged", self)

    def __call__(self, *parts: Any, bits: int) -> Base:
        self.calls += 1
        if self.fails:
            raise MemoryError("no room")
        return merged(*parts, bits=bits)


def test_merge_that_fails_is_told_and_tried_again_while_writes_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge = Failing(monkeypatch)
    trie = LiveTrie(SPACES[0], overlay_max=2)
    rows = [
        Row((number, side, 0), f"video-{number}{side}", 1, "", "")
        for number in range(3)
        for side in range(2)
    ]
    insert(trie, rows[:2])
    with pytest.raises(MemoryError, match="no room"):
        trie.settle()
    assert isinstance(trie.merge_failure, MemoryError)
    before = merge.calls
    for row in rows[2:]:
        insert(trie, [row])
    assert merge.calls == before  # it is too soon
    assert trie.remove(rows[0].video_id)
    monkeypatch.setattr("models.trie_entries.RETRY_S", 0.0)
    with pytest.raises(MemoryError):
        trie.settle()
    merge.fails = False
    assert trie.remove(rows[1].video_id)
    trie.settle()
    assert trie.merge_failure is None
    assert trie.view.some_video_ids(9) == [row.video_id for row in rows[2:]]


def test_merge_whose_thread_cannot_start_is_told_and_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    trie = LiveTrie(SPACES[0], overlay_max=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        trie.insert((0, 0, 0), "a", 1)
        trie.insert((1, 0, 0), "b", 1)
        assert "new thread" in str(trie.merge_failure)
        with pytest.raises(RuntimeError, match="new thread"):
            trie.settle()
    trie.insert_many([(2, 0, 0), (2, 1, 0), (2, 0, 1), (2, 1, 1)], ["c", "d", "e", "f"], [1] * 4)
    trie.settle()
    assert trie.view.some_video_ids(9) == ["a", "b", "c", "e", "d", "f"]


def test_insert_of_many_that_fails_changes_nothing_and_else_is_one_merge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = LARGE_SPACES[0]
    rows = random_rows(space, 3000)
    trie = LiveTrie(space, overlay_max=1000)
    insert(trie, rows[:1200])
    trie.settle()
    insert(trie, rows[1200:1300])  # in the overlay
    trie.settle()
    insert(trie, rows[1300:1400])
    # Some of either part move, to where another that moves was.
    moved = [
        replace(row, semantic_id=rows[number + 1].semantic_id)
        for number, row in zip(range(1190, 1399), rows[1190:1399], strict=True)
    ]
    batch = [*moved, replace(rows[1399], semantic_id=rows[1190].semantic_id), *rows[1400:]]
    merge = Failing(monkeypatch)
    before = sorted(rows[:1400], key=lambda row: row.semantic_id)
    with pytest.raises(MemoryError):
        insert(trie, batch)
    assert trie.view.some_video_ids(5000) == [row.video_id for row in before]
    assert len(trie) == 1400
    assert trie.semantic_id_of(rows[1200].video_id) == rows[1200].semantic_id
    merge.fails, merge.calls = False, 0
    insert(trie, batch)
    assert merge.calls == 1
    after = sorted([*rows[:1190], *batch], key=lambda row: row.semantic_id)
    assert trie.view.some_video_ids(5000) == [row.video_id for row in after]
    assert len(trie) == 3000


def test_removals_alone_are_merged_away_once_they_are_many() -> None:
    space = LARGE_SPACES[0]
    rows = random_rows(space, 2000)
    trie = LiveTrie(space, overlay_max=100)
    insert(trie, rows)
    trie.settle()
    for row in rows[:251]:  # more than an eighth
        assert trie.remove(row.video_id)
    for thread in threading.enumerate():
        if thread.name == "trie-merge":
            thread.join()
    assert len(trie._entries.state.base.segment.keys_N) <= 1750
    left = sorted(rows[251:], key=lambda row: row.semantic_id)
    assert trie.view.some_video_ids(5000) == [row.video_id for row in left]
    for row in rows[251:]:
        assert trie.remove(row.video_id)
    assert not trie.view


def test_views_state_is_not_older_than_the_call_when_threads_share_the_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread looks the filters up, and another puts its older result in their place before the first reads it."""
    trie = LiveTrie(SPACES[0])
    view = trie.view.filtered(Filters(excluded_video_ids=["nobody"]))
    old = trie._entries.sieve(view._filters)
    trie.insert((0, 0, 0), "a", 1)

    class Shared(TrieView):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_resolved" and value is not None and value is not old:
                super().__setattr__(name, old)

    shared = Shared(trie.view.space, trie._entries, view._filters)
    assert shared.some_video_ids(9) == ["a"]

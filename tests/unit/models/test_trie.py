"""The trie against a dict and a filter over tuples, and its snapshots while other threads write."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_id import SemanticId, SemanticIdSpace
from models.trie import LiveTrie, TrieView
from models.trie_filters import Filters

SPACES = [
    SemanticIdSpace(codebook_version=1, codebook_sizes=(3, 2), disambiguation_size=2),
    SemanticIdSpace(codebook_version=1, codebook_sizes=(2,) * 7, disambiguation_size=1),
]
VIDEO_IDS = [f"video-{number}" for number in range(6)]

Live = dict[str, tuple[SemanticId, int]]
# One write: the removal of a video, or one insert_many.
Write = str | list[tuple[SemanticId, str]]


def key_of(space: SemanticIdSpace, semantic_id: SemanticId) -> int:
    return int(space.pack(np.array(semantic_id))[0])


def pack_prefix(space: SemanticIdSpace, prefix: SemanticId) -> int:
    """Pack a prefix as its semantic ID with zeros behind, less the bits of the zeros."""
    missing = space.num_levels - len(prefix)
    key = key_of(space, prefix + (0,) * missing)
    return key >> sum(space.level_bits[len(prefix) :])


def assert_is_exactly(view: TrieView, live: Iterable[tuple[SemanticId, str, int]]) -> None:
    """Check arrays, look-ups and the children of every prefix, live or not, against the list."""
    space = view.space
    expected = sorted(live)
    assert [tuple(row) for row in space.unpack(view.keys_N).tolist()] == [e[0] for e in expected]
    assert view.video_ids_N.tolist() == [e[1] for e in expected]
    assert view.upload_times_ms_N.tolist() == [e[2] for e in expected]
    assert len(view) == len(expected)
    for semantic_id, video_id, _ in expected:
        assert view.video_id_of(key_of(space, semantic_id)) == video_id
    for level, size in enumerate(space.level_sizes):
        prefixes = list(np.ndindex(*space.level_sizes[:level]))[::-1]
        packed = np.array([pack_prefix(space, prefix) for prefix in prefixes], dtype=np.int64)
        children = view.children(packed, level)
        wanted = [
            (row, code, pack_prefix(space, (*prefix, code)))
            for row, prefix in enumerate(prefixes)
            for code in range(size)
            if any(e[0][: level + 1] == (*prefix, code) for e in expected)
        ]
        assert list(zip(*(array.tolist() for array in children), strict=True)) == wanted


@st.composite
def histories(draw: st.DrawFn) -> tuple[SemanticIdSpace, list[Write]]:
    space = draw(st.sampled_from(SPACES))
    semantic_ids = st.tuples(*(st.integers(0, size - 1) for size in space.level_sizes))
    video_ids = st.sampled_from(VIDEO_IDS)
    inserts = st.lists(st.tuples(semantic_ids, video_ids), max_size=4)
    return space, draw(st.lists(st.one_of(video_ids, inserts), max_size=20))


@settings(deadline=None)
@given(histories(), st.data())
def test_trie_after_any_writes_equals_a_dict_and_a_filter(
    history: tuple[SemanticIdSpace, list[Write]], data: st.DataObject
) -> None:
    space, writes = history
    trie, live = LiveTrie(space), Live()
    for time_ms, write in enumerate(writes):
        if isinstance(write, str):
            assert trie.remove(write) == (live.pop(write, None) is not None)
            continue
        after = live | {video_id: (semantic_id, time_ms) for semantic_id, video_id in write}
        arguments = [s for s, _ in write], [v for _, v in write], [time_ms] * len(write)
        if len({semantic_id for semantic_id, _ in after.values()}) < len(after):
            with pytest.raises(ValueError, match="would be held by two videos"):
                trie.insert_many(*arguments)
            continue
        trie.insert_many(*arguments)
        live = after
    rows = [(semantic_id, video_id, time_ms) for video_id, (semantic_id, time_ms) in live.items()]
    assert_is_exactly(trie.view, rows)
    for video_id in VIDEO_IDS:
        assert trie.semantic_id_of(video_id) == live.get(video_id, (None,))[0]
    keep = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    kept_rows = [row for row, kept in zip(sorted(rows), keep, strict=True) if kept]
    assert_is_exactly(trie.view.restricted(np.array(keep, dtype=np.bool_)), kept_rows)
    assert_is_exactly(trie.view, rows)


@settings(deadline=None)
@given(
    st.integers(0, 6) | st.none(),
    st.lists(st.sampled_from([*VIDEO_IDS, "nobody"]), max_size=4),
    st.lists(st.sampled_from(["", "a", "b", "nobody"]), max_size=2),
    st.lists(st.sampled_from(["", "en", "de", "nobody"]), max_size=2),
)
def test_filtered_view_holds_exactly_what_passes(
    after_ms: int | None, video_ids: list[str], channels: list[str], languages: list[str]
) -> None:
    rows = [
        (video_id, number, "ab"[number % 2], ["", "en", "de"][number % 3])
        for number, video_id in enumerate(VIDEO_IDS)
    ]
    trie = LiveTrie(SPACES[0])
    semantic_ids = [(number // 2, number % 2, 0) for number in range(len(rows))]
    ids, times_ms, of_channels, in_languages = zip(*rows, strict=True)
    trie.insert_many(semantic_ids, ids, times_ms, channels=of_channels, languages=in_languages)
    view = trie.view.filtered(Filters(after_ms, video_ids, channels, languages))
    passing = [
        (semantic_id, row[0], row[1])
        for semantic_id, row in zip(semantic_ids, rows, strict=True)
        if (after_ms is None or row[1] >= after_ms)
        and row[0] not in video_ids
        and row[2] not in channels
        and (not languages or (row[3] != "" and row[3] in languages))
    ]
    assert_is_exactly(view, passing)
    assert view.some_video_ids(len(rows)) == [video_id for _, video_id, _ in passing]
    for video_id in [*VIDEO_IDS, "nobody"]:
        assert view.allows(video_id) == any(video_id == one for _, one, _ in passing)


def test_insert_of_a_known_video_retires_its_old_semantic_id() -> None:
    trie = LiveTrie(SPACES[0])
    trie.insert((0, 0, 0), "a", 1)
    trie.insert((2, 1, 1), "a", 2)
    assert_is_exactly(trie.view, [((2, 1, 1), "a", 2)])
    trie.insert((0, 0, 0), "b", 3)
    assert_is_exactly(trie.view, [((0, 0, 0), "b", 3), ((2, 1, 1), "a", 2)])


def test_insert_of_a_held_semantic_id_is_refused_and_changes_nothing() -> None:
    trie = LiveTrie(SPACES[0])
    trie.insert((0, 0, 0), "a", 1)
    trie.insert((1, 0, 0), "b", 2)
    with pytest.raises(ValueError, match=r"\(0, 0, 0\) would be held by two videos"):
        trie.insert((0, 0, 0), "b", 3)
    assert_is_exactly(trie.view, [((0, 0, 0), "a", 1), ((1, 0, 0), "b", 2)])
    assert trie.semantic_id_of("b") == (1, 0, 0)


@pytest.mark.parametrize("semantic_id", [(3, 0, 0), (0, -1, 0), (0, 0), (0, 0, 0, 0)])
def test_insert_of_a_semantic_id_outside_the_space_is_refused(semantic_id: SemanticId) -> None:
    trie = LiveTrie(SPACES[0])
    with pytest.raises(ValueError, match="level"):
        trie.insert(semantic_id, "a", 1)
    assert len(trie.view) == 0


def test_children_of_codes_seen_only_under_other_prefixes_are_none() -> None:
    """A table of which code follows which would let (0, 0, 1) and (1, 0, 0) through."""
    trie = LiveTrie(SPACES[0])
    trie.insert_many([(0, 0, 0), (1, 0, 1)], ["a", "b"], [1, 2])
    prefixes = np.array([pack_prefix(SPACES[0], prefix) for prefix in [(0, 0), (1, 0), (2, 0)]])
    children = trie.view.children(prefixes, 2)
    assert children.row_C.tolist() == [0, 1]
    assert children.code_C.tolist() == [0, 1]


def test_view_taken_before_a_write_does_not_change_and_cannot_be_changed() -> None:
    trie = LiveTrie(SPACES[0])
    trie.insert((0, 0, 0), "a", 1)
    before = trie.view
    trie.insert((0, 0, 1), "b", 2)
    trie.remove("a")
    assert_is_exactly(before, [((0, 0, 0), "a", 1)])
    with pytest.raises(ValueError, match="read-only"):
        before.keys_N[0] = 7


def test_views_read_while_two_threads_write_are_whole() -> None:
    """Each video always holds one of two semantic IDs, and its upload time says which."""
    space = SemanticIdSpace(codebook_version=1, codebook_sizes=(8, 8), disambiguation_size=4)
    trie = LiveTrie(space)
    homes = [[(number // 8, number % 8, side) for side in (0, 1)] for number in range(64)]
    trie.insert_many(
        [home[0] for home in homes],
        [f"video-{number}" for number in range(64)],
        [key_of(space, home[0]) for home in homes],
    )

    def move(numbers: range) -> None:
        for round_number in range(1, 6):
            for number in numbers:
                home = homes[number][round_number % 2]
                trie.insert(home, f"video-{number}", key_of(space, home))

    writers = [threading.Thread(target=move, args=(r,)) for r in (range(32), range(32, 64))]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        view = trie.view
        assert (np.diff(view.keys_N) > 0).all()
        assert (view.upload_times_ms_N == view.keys_N).all()
        assert len(set(view.video_ids_N.tolist())) == len(view) == 64
        assert view.children(np.zeros(1, dtype=np.int64), 0).code_C.tolist() == list(range(8))
    for writer in writers:
        writer.join()
    assert space.unpack(trie.view.keys_N).tolist() == [list(home[1]) for home in homes]

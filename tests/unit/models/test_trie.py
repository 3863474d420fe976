"""The trie against a dict and a filter over tuples, its merges, and its searches while other threads write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_id import SemanticId, SemanticIdSpace
from models.trie import LiveTrie, TrieView, warm
from models.trie_filters import Filters

SPACES = [
    SemanticIdSpace(codebook_version=1, codebook_sizes=(3, 2), disambiguation_size=2),
    SemanticIdSpace(codebook_version=1, codebook_sizes=(3, 1, 3), disambiguation_size=2),
    SemanticIdSpace(codebook_version=1, codebook_sizes=(2,) * 7, disambiguation_size=1),
]
# Of 63 bits: the last key is the greatest int64, and there is none after it.
WIDEST = SemanticIdSpace(
    codebook_version=1, codebook_sizes=(1 << 21, 1 << 20), disambiguation_size=1 << 22
)
VIDEO_IDS = ["video-0", "video-1", "video-2", "", "вид\ud83d\ude00ео", "v" * 256]
CHANNELS = ["", "a", "b"]
LANGUAGES = ["", "en", "de"]


@dataclass(frozen=True)
class Row:
    """A live video."""

    semantic_id: SemanticId
    video_id: str
    time_ms: int
    channel: str
    language: str

    def passes(self, filters: Filters) -> bool:
        return (
            (filters.uploaded_after_ms is None or self.time_ms >= filters.uploaded_after_ms)
            and self.video_id not in filters.excluded_video_ids
            and self.channel not in filters.excluded_channels
            and (
                not filters.languages
                or (self.language != "" and self.language in filters.languages)
            )
        )


# One write: the removal of a video, one insert_many, or a merge of what came so far.
Write = str | list[Row] | None


def key_of(space: SemanticIdSpace, semantic_id: SemanticId) -> int:
    return int(space.pack(np.array(semantic_id))[0])


def pack_prefix(space: SemanticIdSpace, prefix: SemanticId) -> int:
    """Pack a prefix as its semantic ID with zeros behind, less the bits of the zeros."""
    missing = space.num_levels - len(prefix)
    key = key_of(space, prefix + (0,) * missing)
    return key >> sum(space.level_bits[len(prefix) :])


def insert(trie: LiveTrie, rows: Sequence[Row]) -> None:
    trie.insert_many(
        [row.semantic_id for row in rows],
        [row.video_id for row in rows],
        [row.time_ms for row in rows],
        channels=[row.channel for row in rows],
        languages=[row.language for row in rows],
    )


def expected_children(
    space: SemanticIdSpace, prefixes: Sequence[SemanticId], level: int, rows: Collection[Row]
) -> list[tuple[int, int, int]]:
    live = {row.semantic_id[: level + 1] for row in rows}
    return [
        (number, code, pack_prefix(space, (*prefix, code)))
        for number, prefix in enumerate(prefixes)
        for code in range(space.level_sizes[level])
        if (*prefix, code) in live
    ]


def assert_is_exactly(view: TrieView, live: Collection[Row]) -> None:
    """Check look-ups, and the children of every prefix, live or not, against the list."""
    space = view.space
    expected = sorted(live, key=lambda row: row.semantic_id)
    assert len(view) == len(expected)
    assert bool(view) == bool(expected)
    assert view.some_video_ids(len(expected) + 1) == [row.video_id for row in expected]
    for row in expected:
        assert view.video_id_of(key_of(space, row.semantic_id)) == row.video_id
    for video_id in VIDEO_IDS:
        assert view.allows(video_id) == any(row.video_id == video_id for row in expected)
    for level in range(space.num_levels):
        prefixes = list(np.ndindex(*space.level_sizes[:level]))[::-1]
        packed = np.array([pack_prefix(space, prefix) for prefix in prefixes], dtype=np.int64)
        children = view.children(packed, level)
        found = list(zip(*(array.tolist() for array in children), strict=True))
        assert found == expected_children(space, prefixes, level, expected)


def assert_best_are_exactly(view: TrieView, live: Collection[Row], seed: int) -> None:
    """Check the best children of some prefixes against all children, sorted; many scores are equal."""
    space, rng = view.space, np.random.default_rng(seed)
    for level, size in enumerate(space.level_sizes):
        prefixes = list(np.ndindex(*space.level_sizes[:level]))[::2]
        packed = np.array([pack_prefix(space, prefix) for prefix in prefixes], dtype=np.int64)
        log_probs_W = rng.integers(-3, 0, len(prefixes)).astype(np.float64)
        log_probs_WK = rng.choice([-2, -1, 0, np.nan], (len(prefixes), size)).astype(np.float32)
        repeated = [row.semantic_id for row in live][: int(rng.integers(0, 3))]
        repeated_X = np.array([key_of(space, each) for each in repeated], np.int64)
        left = [row for row in live if row.semantic_id not in repeated]
        scored = [
            (float(log_probs_W[row] + log_probs_WK[row, code]), prefix, row)
            for row, code, prefix in expected_children(space, prefixes, level, left)
        ]
        scored.sort(key=lambda one: (np.isnan(one[0]), -one[0], one[1], one[2]))
        for count in (1, 3, 50):
            best = view.best_children(
                packed, level, log_probs_W, log_probs_WK, count=count,
                repeated_WX=np.tile(repeated_X, (len(packed), 1)),
            )  # fmt: skip
            found = list(zip(best.log_probs_C, best.prefix_C, best.row_C, strict=True))
            wanted = sorted(scored[:count], key=lambda one: (one[1], one[2]))
            assert [pair[1:] for pair in found] == [pair[1:] for pair in wanted]
            np.testing.assert_array_equal([pair[0] for pair in found], [pair[0] for pair in wanted])
            assert (best.prefix_C & ((1 << space.level_bits[level]) - 1) == best.code_C).all()


filters_ = st.builds(
    Filters,
    st.integers(0, 20) | st.none(),
    st.lists(st.sampled_from([*VIDEO_IDS, "nobody"]), max_size=4),
    st.lists(st.sampled_from([*CHANNELS, "nobody"]), max_size=2),
    st.lists(st.sampled_from([*LANGUAGES, "nobody"]), max_size=2),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[SemanticIdSpace, list[Write]]:
    space = draw(st.sampled_from(SPACES))
    rows = st.builds(
        Row,
        st.tuples(*(st.integers(0, size - 1) for size in space.level_sizes)),
        st.sampled_from(VIDEO_IDS),
        st.integers(0, 20),
        st.sampled_from(CHANNELS),
        st.sampled_from(LANGUAGES),
    )
    writes = st.one_of(st.sampled_from(VIDEO_IDS), st.lists(rows, max_size=4), st.none())
    return space, draw(st.lists(writes, max_size=20))


def write(trie: LiveTrie, live: dict[str, Row], one: Write) -> None:
    """Do a write to both, where it is allowed."""
    if one is None:
        trie.settle()
        return
    if isinstance(one, str):
        assert trie.remove(one) == (live.pop(one, None) is not None)
        return
    after = live | {row.video_id: row for row in one}
    if len({row.semantic_id for row in after.values()}) < len(after):
        with pytest.raises(ValueError, match="would be held by two videos"):
            insert(trie, one)
        return
    insert(trie, one)
    live.update(after)


@settings(deadline=None, max_examples=200)
@given(histories(), filters_, filters_, st.integers(1, 3), st.integers(0, 1000))
def test_trie_after_any_writes_and_merges_equals_a_dict_and_a_filter(
    history: tuple[SemanticIdSpace, list[Write]],
    filters: Filters,
    further: Filters,
    overlay_max: int,
    seed: int,
) -> None:
    space, writes = history
    trie, live = LiveTrie(space, overlay_max=overlay_max), dict[str, Row]()
    filtered = trie.view.filtered(filters)
    for one in writes:
        write(trie, live, one)
        len(filtered)  # it looks its filters up now, and has to notice what is written later
    passing = [row for row in live.values() if row.passes(filters)]
    assert len(trie) == len(live)
    assert_is_exactly(trie.view, live.values())
    assert_is_exactly(filtered, passing)
    twice = [row for row in passing if row.passes(further)]
    assert_is_exactly(filtered.filtered(further), twice)
    assert_best_are_exactly(trie.view, live.values(), seed)
    assert_best_are_exactly(filtered, passing, seed)
    for video_id in VIDEO_IDS:
        held = live[video_id].semantic_id if video_id in live else None
        assert trie.semantic_id_of(video_id) == held


def random_rows(space: SemanticIdSpace, count: int, seed: int = 0, start: int = 0) -> list[Row]:
    """Return rows that crowd in some parts of the space, of distinct semantic IDs and 100 languages."""
    rng = np.random.default_rng(seed)
    found: dict[SemanticId, None] = {}
    while len(found) < count:
        codes = (rng.random(space.num_levels) ** 3 * space.level_sizes).astype(int)
        found[tuple(codes.tolist())] = None
    return [
        Row(
            semantic_id,
            f"video-{start + number}",
            int(rng.integers(0, 1000)),
            f"channel-{int(rng.integers(0, 50))}",
            f"l{int(rng.integers(0, 100))}" if number % 7 else "",
        )
        for number, semantic_id in enumerate(found)
    ]


LARGE_SPACES = [
    SemanticIdSpace(codebook_version=1, codebook_sizes=(40, 30), disambiguation_size=16),
    SemanticIdSpace(codebook_version=1, codebook_sizes=(16, 8, 8, 4), disambiguation_size=8),
    SemanticIdSpace(codebook_version=1, codebook_sizes=(6,) * 7, disambiguation_size=4),
    WIDEST,
]


@pytest.mark.parametrize("space", LARGE_SPACES, ids=lambda space: str(space.num_levels))
@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(uploaded_after_ms=990),
        Filters(languages=["l3", "l67", "none"]),  # of which one's number is above 62
        Filters(500, [f"video-{n}" for n in range(0, 3000, 3)], ["channel-1", "channel-2"], ["l5"]),
        Filters(uploaded_after_ms=2000),
    ],
    ids=["none", "age", "languages", "all", "nothing passes"],
)
def test_walk_down_a_large_trie_equals_brute_force(
    space: SemanticIdSpace, filters: Filters
) -> None:
    """With spans and buckets of many entries, most in the base and some in the overlay, and a part removed."""
    rows = random_rows(space, 4000)
    trie = LiveTrie(space)
    insert(trie, rows[:3000])
    for row in rows[3000:]:
        insert(trie, [row])
    for row in rows[::5]:
        trie.remove(row.video_id)
    live = [row for number, row in enumerate(rows) if number % 5 and row.passes(filters)]
    view, rng = trie.view.filtered(filters), np.random.default_rng(1)
    assert len(view) == len(live)
    prefixes: list[SemanticId] = [()]
    for level, size in enumerate(space.level_sizes):
        packed = np.array([pack_prefix(space, prefix) for prefix in prefixes], dtype=np.int64)
        chosen = {prefix: number for number, prefix in enumerate(prefixes)}
        wanted = sorted(
            {
                (chosen[row.semantic_id[:level]], row.semantic_id[level])
                for row in live
                if row.semantic_id[:level] in chosen
            }
        )
        children = view.children(packed, level)
        assert list(zip(children.row_C.tolist(), children.code_C.tolist(), strict=True)) == wanted
        if size <= 64:
            log_probs_W = -rng.random(len(prefixes))
            log_probs_WK = -rng.random((len(prefixes), size)).astype(np.float32)
            best = view.best_children(packed, level, log_probs_W, log_probs_WK, count=9)
            scores = {
                (row, code): log_probs_W[row] + log_probs_WK[row, code] for row, code in wanted
            }
            found = set(zip(best.row_C.tolist(), best.code_C.tolist(), strict=True))
            assert found == set(sorted(scores, key=lambda pair: -scores[pair])[:9])
        longer = [(*prefixes[row], code) for row, code in wanted]
        prefixes = sorted(longer[:: max(1, len(longer) // 12)])


def test_last_key_of_63_bits_is_found_and_removed() -> None:
    trie = LiveTrie(WIDEST, overlay_max=1)
    last = tuple(size - 1 for size in WIDEST.level_sizes)
    for settled in (False, True):
        trie.insert(last, "last", 1)
        trie.insert((0, 0, 0), "first", 1)
        if settled:
            trie.settle()
        prefix = 0
        for level, code in enumerate(last):
            children = trie.view.children(np.array([prefix]), level)
            assert children.code_C.tolist()[-1] == code
            prefix = int(children.prefix_C[-1])
        assert trie.view.video_id_of(prefix) == "last"
        assert trie.remove("last")
        assert trie.view.video_id_of(prefix) is None


@pytest.mark.parametrize("prefix", [-1, 1 << 40, (1 << 62) + 5, 1 << 61, -(1 << 63)])
def test_prefix_outside_the_space_leads_nowhere(prefix: int) -> None:
    trie = LiveTrie(SPACES[0])
    trie.insert((0, 0, 0), "a", 1)
    assert len(trie.view.children(np.array([prefix]), 2).row_C) == 0
    assert trie.view.video_id_of(prefix) is None
    best = trie.view.best_children(
        np.array([prefix]), 2, np.zeros(1), np.zeros((1, 2), np.float32), count=2
    )
    assert len(best.row_C) == 0


def test_insert_of_a_known_video_retires_its_old_semantic_id() -> None:
    trie = LiveTrie(SPACES[0])
    row = Row((0, 0, 0), "video-0", 1, "a", "en")
    insert(trie, [row])
    moved = replace(row, semantic_id=(2, 1, 1), channel="b")
    insert(trie, [moved])
    assert_is_exactly(trie.view, [moved])
    other = replace(row, video_id="video-1")
    insert(trie, [other])
    assert_is_exactly(trie.view, [other, moved])


def test_insert_of_a_held_semantic_id_is_refused_and_changes_nothing() -> None:
    trie = LiveTrie(SPACES[0])
    rows = [Row((0, 0, 0), "video-0", 1, "", ""), Row((1, 0, 0), "video-1", 2, "", "")]
    insert(trie, rows)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\(0, 0, 0\) would be held by two videos, 'video-0'"):
            trie.insert((0, 0, 0), "video-1", 3)
        assert_is_exactly(trie.view, rows)
        assert trie.semantic_id_of("video-1") == (1, 0, 0)
        trie.settle()


def test_videos_that_change_places_in_one_batch_are_both_moved() -> None:
    trie = LiveTrie(SPACES[0])
    rows = [Row((0, 0, 0), "video-0", 1, "", ""), Row((1, 0, 0), "video-1", 2, "", "")]
    insert(trie, rows)
    swapped = [
        replace(rows[0], semantic_id=rows[1].semantic_id),
        replace(rows[1], semantic_id=rows[0].semantic_id),
    ]
    insert(trie, swapped)
    assert_is_exactly(trie.view, swapped)


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


def test_view_taken_before_a_write_sees_it() -> None:
    trie = LiveTrie(SPACES[0])
    rows = [Row((0, 0, number), f"video-{number}", 1, "", "") for number in (0, 1)]
    view = trie.view.filtered(Filters(excluded_video_ids=["video-1"]))
    assert_is_exactly(view, [])
    insert(trie, rows)
    assert_is_exactly(view, rows[:1])
    trie.remove("video-0")
    assert_is_exactly(view, [])


def test_semantic_id_of_an_excluded_video_is_free_for_others_once_it_is_removed() -> None:
    trie = LiveTrie(SPACES[0])
    insert(trie, [Row((0, 0, 0), "video-0", 1, "", "")])
    view = trie.view.filtered(Filters(excluded_video_ids=["video-0"]))
    assert len(view) == 0
    trie.remove("video-0")
    other = Row((0, 0, 0), "video-1", 1, "", "")
    insert(trie, [other])
    assert_is_exactly(view, [other])


def test_warm_up_compiles_without_an_error() -> None:
    warm.__wrapped__()


def in_threads(*works: Callable[[], None]) -> None:
    """Run all at once, and raise what any of them raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_searches_while_threads_insert_and_remove_find_only_what_was_live_and_passes() -> None:
    """Each video is live, then removed for good; a search may find it only if it was live at some time between."""
    space = SemanticIdSpace(codebook_version=1, codebook_sizes=(16, 8, 8), disambiguation_size=8)
    rows = random_rows(space, 3000, seed=3)
    trie = LiveTrie(space, overlay_max=64)
    insert(trie, rows[:1500])
    by_id = {row.video_id: row for row in rows}
    begun, inserted, removed, done = set[str](), set[str](), set[str](), threading.Event()
    begun.update(row.video_id for row in rows[:1500])
    inserted.update(begun)
    filters = Filters(uploaded_after_ms=300, excluded_channels=["channel-3"])

    def insert_more() -> None:
        for row in rows[1500:]:
            begun.add(row.video_id)
            insert(trie, [row])
            inserted.add(row.video_id)

    def remove_some() -> None:
        for row in rows[:1500:2] + rows[1500::3]:
            while row.video_id not in inserted:
                done.wait(0.001)
            assert trie.remove(row.video_id)
            removed.add(row.video_id)

    def search() -> None:
        rng = np.random.default_rng()
        while not done.is_set():
            gone_before, whole = set(removed), inserted - removed
            view, prefixes, log_probs = (
                trie.view.filtered(filters),
                np.zeros(1, np.int64),
                np.zeros(1),
            )
            for level, size in enumerate(space.level_sizes):
                scores_WK = -rng.random((len(prefixes), size)).astype(np.float32)
                best = view.best_children(prefixes, level, log_probs, scores_WK, count=40)
                prefixes, log_probs = best.prefix_C, best.log_probs_C
            found = [one for one in view.video_ids_of(prefixes) if one is not None]
            live_throughout = [one for one in whole - removed if by_id[one].passes(filters)]
            assert set(found) <= begun - gone_before
            assert all(by_id[one].passes(filters) for one in found)
            assert len(set(found)) == len(found)
            assert found or not live_throughout

    def write_all() -> None:
        try:
            in_threads(insert_more, remove_some)
        finally:
            done.set()

    in_threads(write_all, search, search)
    trie.settle()
    left = [row for row in rows if row.video_id not in removed]
    assert len(trie) == len(left)
    assert trie.view.some_video_ids(len(rows)) == [
        row.video_id for row in sorted(left, key=lambda row: row.semantic_id)
    ]


def test_writers_at_once_leave_what_one_after_the_other_would() -> None:
    """Each video moves between two semantic IDs that no other holds, over many merges."""
    space = SemanticIdSpace(codebook_version=1, codebook_sizes=(8, 8), disambiguation_size=4)
    trie = LiveTrie(space, overlay_max=8)
    homes = [[(number // 8, number % 8, side) for side in (0, 1)] for number in range(64)]

    def move(numbers: range) -> None:
        for round_number in range(30):
            for number in numbers:
                trie.insert(homes[number][round_number % 2], f"video-{number}", round_number)

    in_threads(lambda: move(range(32)), lambda: move(range(32, 64)))
    for number, home in enumerate(homes):
        assert trie.semantic_id_of(f"video-{number}") == home[1]
        assert trie.view.video_id_of(key_of(space, home[1])) == f"video-{number}"
        assert trie.view.video_id_of(key_of(space, home[0])) is None
    assert len(trie) == len(trie.view.some_video_ids(100)) == 64

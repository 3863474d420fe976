"""The trie of live semantic IDs: what may be generated next, at this moment; knows nothing of models, beams and topics.

A view is no snapshot: each of its methods answers of what is live while it runs. So a video that was removed is not
found by the next step of a search that is under way, and one that was inserted is.

Legend: W prefixes asked about; K codes of a level; C children; X keys a row may not repeat; M entries written;
L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.semantic_id import SemanticId, SemanticIdSpace
from models.trie_entries import NO_SIEVE, Batch, Entries, State
from models.trie_filters import Filters
from models.trie_kernels import Sieve, any_passes, best_children, children, locate, passing, ranges
from models.trie_segments import text_of

Int64s = NDArray[np.int64]
OVERLAY_MAX = 16_384
"""Copied in a tenth of a millisecond; a merge per so many inserts."""


class Children(NamedTuple):
    """The codes that may follow each of some prefixes, in the order of (row, code).

    Attributes:
        row_C: which of the prefixes asked about.
        code_C: a code that follows it.
        prefix_C: the prefix with that code appended, packed.
    """

    row_C: Int64s
    code_C: Int64s
    prefix_C: Int64s


class BestChildren(NamedTuple):
    """The best of the codes that may follow some prefixes, in the order of (prefix with the code, row)."""

    row_C: Int64s
    code_C: Int64s
    prefix_C: Int64s
    log_probs_C: NDArray[np.float64]


class TrieView:
    """The live semantic IDs whose videos pass some filters, as they are at each call; for any number of threads."""

    def __init__(self, space: SemanticIdSpace, entries: Entries, filters: tuple[Filters, ...] = ()):
        """See these entries through all of the filters."""
        self.space = space
        self._entries, self._filters = entries, filters
        self._below = space.bits_below
        self._resolved: tuple[State, Sieve] | None = None

    def __len__(self) -> int:
        """Return how many videos pass; with filters, all entries are looked at."""
        if not self._filters:
            return self._entries.num_live
        state, sieve = self._seen()
        none = np.empty(0, np.int64)
        return sum(passing(one, sieve, none) for one in (state.base.segment, state.overlay.segment))

    def __bool__(self) -> bool:
        """Return whether any video passes; the first that does is enough."""
        if not self._filters:
            return self._entries.num_live > 0
        state, sieve = self._seen()
        return any_passes(state.base.segment, state.overlay.segment, sieve)

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and self.allows(video_id)

    def allows(self, video_id: str) -> bool:
        """Return whether a video is live and passes the filters."""
        key = self._entries.key_of(video_id)
        return key is not None and self.video_id_of(key) == video_id

    def filtered(self, filters: Filters) -> TrieView:
        """Return a view of only what passes these filters, too; nothing is copied or rebuilt."""
        return TrieView(self.space, self._entries, (*self._filters, filters)) if filters else self

    def some_video_ids(self, count: int) -> list[str]:
        """Return the videos of the smallest keys, up to so many."""
        state, sieve = self._seen()
        found_C, new_C = np.empty((2, count), np.int64)
        found_C = found_C[: passing(state.base.segment, sieve, found_C)]
        new_C = new_C[: passing(state.overlay.segment, sieve, new_C)]
        in_base = zip(
            state.base.segment.keys_N[found_C].tolist(),
            (text_of(state.base.texts, at) for at in found_C.tolist()),
            strict=True,
        )
        in_overlay = zip(
            state.overlay.segment.keys_N[new_C].tolist(),
            state.overlay.video_ids_N[new_C].tolist(),
            strict=True,
        )
        return [video_id for _, video_id in sorted([*in_base, *in_overlay])[:count]]

    def video_id_of(self, key: int) -> str | None:
        """Return the video that holds this packed semantic ID and passes, or None."""
        return self.video_ids_of(np.array([key], np.int64))[0]

    def video_ids_of(self, keys_C: Int64s) -> list[str | None]:
        """Return for each packed semantic ID the video that holds it and passes, or None."""
        state, sieve = self._seen()
        keys_C = _plain(keys_C, np.int64)
        found_C, new_C = np.empty((2, len(keys_C)), np.int64)
        locate(state.base.segment, state.overlay.segment, sieve, keys_C, found_C, new_C)
        return [
            str(state.overlay.video_ids_N[new])
            if new >= 0
            else text_of(state.base.texts, at)
            if at >= 0
            else None
            for at, new in zip(found_C.tolist(), new_C.tolist(), strict=True)
        ]

    def children(self, prefixes_W: Int64s, level: int) -> Children:
        """Return every code of `level` that leads from each prefix to a video that passes.

        A prefix that leads nowhere has no children; that is not an error.

        Shapes: prefixes_W, each of `level` codes, packed (level 0: the one empty prefix, 0) -> three arrays [C].
        """
        state, sieve = self._seen()
        prefixes_W = _plain(prefixes_W, np.int64)
        bits, ranges_W4 = self.space.level_bits[level], self._ranges(state, prefixes_W, level)
        sizes_W = ranges_W4[:, 1] - ranges_W4[:, 0] + ranges_W4[:, 3] - ranges_W4[:, 2]
        row_C, prefix_C = np.empty((2, int(np.minimum(sizes_W, 1 << bits).sum())), np.int64)
        count = children(
            state.base.segment, state.overlay.segment, sieve, ranges_W4, prefixes_W,
            bits, self._below[level + 1], row_C, prefix_C,
        )  # fmt: skip
        prefix_C = prefix_C[:count]
        return Children(row_C[:count], prefix_C & ((1 << bits) - 1), prefix_C)

    def best_children(
        self,
        prefixes_W: Int64s,
        level: int,
        log_probs_W: NDArray[np.float64],
        log_probs_WK: NDArray[np.float32],
        *,
        count: int,
        repeated_WX: Int64s | None = None,
    ) -> BestChildren:
        """Return the `count` children of the greatest sums of log-probs; ties go to the smaller key, then row.

        It is what sorting `children` would find, in one pass. A sum that is no number ranks last, and is kept.

        Shapes: prefixes_W as for `children`; log_probs_W of the prefixes; log_probs_WK of each code after each;
        repeated_WX: packed semantic IDs that may not be reached from each row (-1: none).
        """
        state, sieve = self._seen()
        prefixes_W = _plain(prefixes_W, np.int64)
        log_probs_W = _plain(log_probs_W, np.float64)
        log_probs_WK = _plain(log_probs_WK, np.float32)
        if repeated_WX is None:
            repeated_WX = np.empty((len(prefixes_W), 0), np.int64)
        bits, most_W = self.space.level_bits[level], log_probs_W + log_probs_WK.max(1)
        order_W = np.argsort(-most_W)
        scores_C = np.empty(count, np.float64)
        prefix_C, row_C, code_C = np.empty((3, count), np.int64)
        found = best_children(
            state.base.segment, state.overlay.segment, sieve,
            prefixes_W, self.space.bits, self._below[level], bits,
            order_W, log_probs_W, log_probs_WK, most_W,
            _plain(repeated_WX, np.int64), np.empty((log_probs_WK.shape[1], 3), np.int64),
            np.empty(4, np.int64), scores_C, prefix_C, row_C, code_C,
        )  # fmt: skip
        return BestChildren(row_C[:found], code_C[:found], prefix_C[:found], scores_C[:found])

    def _ranges(self, state: State, prefixes_W: Int64s, level: int) -> Int64s:
        ranges_W4 = np.empty((len(prefixes_W), 4), np.int64)
        ranges(
            state.base.segment, state.overlay.segment, prefixes_W,
            self.space.bits, self._below[level], ranges_W4,
        )  # fmt: skip
        return ranges_W4

    def _seen(self) -> tuple[State, Sieve]:
        """Return the newest state, and the filters in its numbers."""
        state = self._entries.state
        if not self._filters:
            return state, NO_SIEVE
        resolved = self._resolved  # read once: another thread may write an older one meanwhile
        if resolved is None or resolved[0] is not state:
            resolved = self._resolved = self._entries.sieve(self._filters)
        return resolved


class LiveTrie:
    """The live semantic IDs, each held by one video; writers take turns, readers take `view` and never wait.

    What is inserted or removed is so for every call of a view that begins after the write has returned. A batch is
    inserted at one moment, but a video that changes its semantic ID is for an instant under neither.
    """

    def __init__(self, space: SemanticIdSpace, *, overlay_max: int = OVERLAY_MAX) -> None:
        """Start empty; after `overlay_max` inserts the sorted base is made anew, in the background.

        It is, too, once more than that many entries are dead, and more than an eighth.
        """
        self._entries = Entries(bits=space.bits, overlay_max=overlay_max)
        self._view = TrieView(space, self._entries)

    def __len__(self) -> int:
        return self._entries.num_live

    @property
    def view(self) -> TrieView:
        """What is live, now and later."""
        return self._view

    def semantic_id_of(self, video_id: str) -> SemanticId | None:
        """Return the live semantic ID of a video, or None."""
        key = self._entries.key_of(video_id)
        return None if key is None else self._unpacked(key)

    def insert(
        self,
        semantic_id: SemanticId,
        video_id: str,
        upload_time_ms: int,
        *,
        channel: str = "",
        language: str = "",
    ) -> None:
        """Make a video live under a semantic ID; one that it held before is retired in the same write.

        Raises:
            ValueError: another video holds the semantic ID, or it lies outside the space.
        """
        self.insert_many(
            [semantic_id],
            [video_id],
            [upload_time_ms],
            channels=[channel],
            languages=[language],
        )

    def insert_many(
        self,
        semantic_ids: Sequence[SemanticId] | Int64s,
        video_ids: Sequence[str],
        upload_times_ms: Sequence[int] | Int64s,
        *,
        channels: Sequence[str] | None = None,
        languages: Sequence[str] | None = None,
    ) -> None:
        """Make many videos live at one moment, all or none; the last entry of a video counts.

        Shapes: semantic_ids [M, L], video_ids, upload_times_ms, channels and languages [M].

        Raises:
            ValueError: two videos would hold one semantic ID, one lies outside the space, or the lengths differ.
        """
        channels = [""] * len(video_ids) if channels is None else channels
        languages = [""] * len(video_ids) if languages is None else languages
        columns = (semantic_ids, video_ids, upload_times_ms, channels, languages)
        lengths = [len(column) for column in columns]
        if len(set(lengths)) > 1:
            raise ValueError(
                "semantic IDs, video ids, upload times, channels and languages differ in length: "
                f"{lengths}"
            )
        if len(video_ids) == 0:
            return
        keys_M = self._view.space.pack(np.asarray(semantic_ids))
        last = np.fromiter({v: i for i, v in enumerate(video_ids)}.values(), np.int64)
        order = last[np.argsort(keys_M[last], kind="stable")]
        keys_M, places = keys_M[order], order.tolist()
        for one in np.flatnonzero(keys_M[1:] == keys_M[:-1])[:1].tolist():
            raise self._refused(
                int(keys_M[one]), video_ids[places[one]], video_ids[places[one + 1]]
            )
        batch = Batch(
            keys_M,
            [video_ids[place] for place in places],
            np.asarray(upload_times_ms, dtype=np.int64)[order],
            [channels[place] for place in places],
            [languages[place] for place in places],
        )
        self._entries.insert(batch, refuse=self._refused)

    def remove(self, video_id: str) -> bool:
        """Take a video out; return whether it was live."""
        return self._entries.remove(video_id)

    def settle(self) -> None:
        """Merge all that was inserted into the sorted base, and wait for it.

        Raises:
            Exception: what the merge failed of, such as a MemoryError; nothing has changed.
        """
        self._entries.settle()

    @property
    def merge_failure(self) -> Exception | None:
        """What the newest merge failed of, or None; writes and searches go on, and a later write begins another."""
        return self._entries.merge_failure

    def _refused(self, key: int, first: str, second: str) -> ValueError:
        return ValueError(
            f"semantic ID {self._unpacked(key)} would be held by two videos, {first!r} and {second!r}; each is held"
            " by one: remove one video first, or allocate another disambiguation code"
        )

    def _unpacked(self, key: int) -> SemanticId:
        codes_L = self._view.space.unpack(np.array([key], dtype=np.int64))[0]
        return tuple(int(code) for code in codes_L)


@cache
def warm() -> None:
    """Compile what the trie's calls are made of, so that none of them has to wait for it."""
    space = SemanticIdSpace(codebook_version=1, codebook_sizes=(2,), disambiguation_size=2)
    trie = LiveTrie(space)
    trie.insert((0, 0), "a", 1)
    trie.settle()
    trie.insert((0, 1), "b", 1, language="en")
    view = trie.view.filtered(Filters(0, ["a"], ["c"], ["en"]))
    root = np.zeros(1, np.int64)
    view.children(root, 0)
    view.best_children(root, 0, np.zeros(1), np.zeros((1, 2), np.float32), count=1)
    assert view.some_video_ids(1) == ["b"]
    assert view
    assert len(view) == 1
    trie.remove("a")


def _plain(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Return the array as the compiled code takes it, copied only if it is not: of one type, in order, writable."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.writeable:
        return array
    return np.require(array, dtype, ["C", "W"])

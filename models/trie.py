"""The trie of live semantic IDs: sorted arrays, copied on write; knows nothing of models, beams and topics.

A snapshot is never changed, so a search reads it from any thread while the next snapshot is being made.

Legend: N videos of a snapshot, sorted by packed key; W prefixes asked about; C children; M entries written; L levels.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.semantic_id import SemanticId, SemanticIdSpace
from models.trie_filters import Filters

Int64s = NDArray[np.int64]
Texts = NDArray[np.object_]


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


@dataclass(frozen=True, eq=False)
class TrieView:
    """An immutable snapshot of the live semantic IDs; its arrays are read-only and aligned.

    Attributes:
        space: which semantic IDs can exist.
        keys_N: packed semantic IDs, ascending.
        video_ids_N: str objects.
        upload_times_ms_N: UTC epoch milliseconds.
        channels_N, languages_N: str objects.
    """

    space: SemanticIdSpace
    keys_N: Int64s
    video_ids_N: Texts
    upload_times_ms_N: Int64s
    channels_N: Texts
    languages_N: Texts

    def __post_init__(self) -> None:
        for array in self._columns:
            array.flags.writeable = False

    @property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return (
            self.keys_N,
            self.video_ids_N,
            self.upload_times_ms_N,
            self.channels_N,
            self.languages_N,
        )

    def __len__(self) -> int:
        return len(self.keys_N)

    def video_id_of(self, key: int) -> str | None:
        """Return the video that holds this packed semantic ID here, or None."""
        position = int(np.searchsorted(self.keys_N, key))
        if position == len(self) or self.keys_N[position] != key:
            return None
        return str(self.video_ids_N[position])

    def children(self, prefixes_W: Int64s, level: int) -> Children:
        """Return every code of `level` that leads from each prefix to a live semantic ID.

        A prefix that leads nowhere has no children; that is not an error.

        Shapes: prefixes_W, each of `level` codes, packed (level 0: the one empty prefix, 0) -> three arrays [C].
        """
        longer = self._prefixes[level]
        bits = self.space.level_bits[level]
        starts_W = np.searchsorted(longer, prefixes_W << bits)
        counts_W = np.searchsorted(longer, (prefixes_W + 1) << bits) - starts_W
        row_C = np.repeat(np.arange(len(prefixes_W)), counts_W)
        # Count on within each row: its own start, plus how far C has come since the row began.
        row_offsets_W = np.cumsum(counts_W) - counts_W
        prefix_C = longer[np.arange(len(row_C)) + (starts_W - row_offsets_W)[row_C]]
        return Children(row_C, prefix_C & ((1 << bits) - 1), prefix_C)

    def allows(self, video_id: str) -> bool:
        """Return whether a video is live and passes the filters."""
        return video_id in self._video_ids

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._video_ids

    def some_video_ids(self, count: int) -> list[str]:
        """Return up to so many of the videos here, always the same ones of one view."""
        found: list[str] = self.video_ids_N[:count].tolist()
        return found

    def filtered(self, filters: Filters) -> TrieView:
        """Return a view of only the videos that pass the filters."""
        keep_N = np.ones(len(self), dtype=np.bool_)
        if filters.uploaded_after_ms is not None:
            keep_N &= self.upload_times_ms_N >= filters.uploaded_after_ms
        keep_N &= ~_one_of(self.video_ids_N, filters.excluded_video_ids)
        keep_N &= ~_one_of(self.channels_N, filters.excluded_channels)
        if filters.languages:
            keep_N &= _one_of(self.languages_N, filters.languages) & (self.languages_N != "")
        return self if keep_N.all() else self.restricted(keep_N)

    def restricted(self, keep_N: NDArray[np.bool_]) -> TrieView:
        """Return a view of only the videos to keep."""
        return TrieView(self.space, *(column[keep_N] for column in self._columns))

    @cached_property
    def _video_ids(self) -> frozenset[str]:
        return frozenset(self.video_ids_N)

    @cached_property
    def _prefixes(self) -> list[Int64s]:
        """Return, for each level, the distinct packed prefixes that end there, ascending."""
        prefixes = [self.keys_N]
        for bits in reversed(self.space.level_bits[1:]):
            shorter = prefixes[0] >> bits
            first_of_its_kind = np.diff(shorter, prepend=-1) != 0
            prefixes.insert(0, shorter[first_of_its_kind])
        return prefixes


class LiveTrie:
    """The live semantic IDs, each held by one video; writers take turns, readers take `view`.

    A write copies the arrays and swaps one reference: no reader waits, and none sees half a write.
    """

    def __init__(self, space: SemanticIdSpace) -> None:
        self._writing = threading.Lock()
        self._key_of: dict[str, int] = {}
        numbers, texts = np.empty(0, np.int64), np.empty(0, np.object_)
        self._view = TrieView(space, numbers, texts, numbers, texts, texts)

    def __len__(self) -> int:
        return len(self._view)

    @property
    def view(self) -> TrieView:
        """The newest snapshot; take it once per request."""
        return self._view

    def semantic_id_of(self, video_id: str) -> SemanticId | None:
        """Return the live semantic ID of a video, or None."""
        key = self._key_of.get(video_id)
        if key is None:
            return None
        codes_L = self._view.space.unpack(np.array([key], dtype=np.int64))[0]
        return tuple(int(code) for code in codes_L)

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
        """Make many videos live with one sort and one merge, all or none; the last entry of a video counts.

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
        last_entries = np.array(list({v: i for i, v in enumerate(video_ids)}.values()))
        order = last_entries[np.argsort(keys_M[last_entries])]
        new_ids, new_channels, new_languages = (
            np.array(texts, dtype=np.object_)[order] for texts in (video_ids, channels, languages)
        )
        new_times = np.asarray(upload_times_ms, dtype=np.int64)[order]
        new = TrieView(
            self._view.space, keys_M[order], new_ids, new_times, new_channels, new_languages
        )
        with self._writing:
            retired = [self._key_of[v] for v in new_ids if v in self._key_of]
            kept = self._without(retired) if retired else self._view
            self._view = _merged(kept, new)
            self._key_of.update(zip(new_ids, keys_M[order].tolist(), strict=True))

    def remove(self, video_id: str) -> bool:
        """Take a video out; return whether it was live."""
        with self._writing:
            key = self._key_of.pop(video_id, None)
            if key is None:
                return False
            self._view = self._without([key])
            return True

    def _without(self, live_keys: Sequence[int]) -> TrieView:
        view = self._view
        keep_N = np.ones(len(view), dtype=np.bool_)
        keep_N[np.searchsorted(view.keys_N, np.array(live_keys, dtype=np.int64))] = False
        return view.restricted(keep_N)


def _merged(view: TrieView, new: TrieView) -> TrieView:
    """Return the view with the new entries put in their places."""
    places_M = np.searchsorted(view.keys_N, new.keys_N)
    merged = TrieView(
        view.space,
        np.insert(view.keys_N, places_M, new.keys_N),
        np.insert(view.video_ids_N, places_M, new.video_ids_N),
        np.insert(view.upload_times_ms_N, places_M, new.upload_times_ms_N),
        np.insert(view.channels_N, places_M, new.channels_N),
        np.insert(view.languages_N, places_M, new.languages_N),
    )
    doubled = np.flatnonzero(merged.keys_N[1:] == merged.keys_N[:-1])
    if len(doubled) > 0:
        semantic_id = tuple(view.space.unpack(merged.keys_N[doubled[:1]])[0].tolist())
        first, second = merged.video_ids_N[doubled[0]], merged.video_ids_N[doubled[0] + 1]
        raise ValueError(
            f"semantic ID {semantic_id} would be held by two videos, {first!r} and {second!r}; each is held"
            " by one: remove one video first, or allocate another disambiguation code"
        )
    return merged


def _one_of(texts_N: Texts, some: Collection[str]) -> NDArray[np.bool_]:
    if not some:
        return np.zeros(len(texts_N), np.bool_)
    wanted = frozenset(some)
    return np.fromiter((one in wanted for one in texts_N), np.bool_, len(texts_N))

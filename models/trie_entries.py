"""The live entries of a trie: an immutable sorted base, a small overlay copied on write, and their merge meanwhile.

    insert    copies the overlay with the new entries, then swaps one reference
    remove    sets one byte, in place: whoever looks next no longer finds it
    merge     in a thread of its own, without the interpreter's lock; what was removed meanwhile is removed again after;
              one that fails changes nothing, and is begun again by a later write

Writers take turns, readers never wait. Knows nothing of levels, models and beams.

Legend: N entries of a segment; M entries written; E ids looked up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.trie_filters import Filters
from models.trie_kernels import Sieve, locate
from models.trie_segments import (
    Array,
    Base,
    Segment,
    empty_base,
    empty_segment,
    find,
    indexed,
    laid_out,
    merged,
    overlay_segment,
    text_of,
)

BULK_MIN = 1024
"""So many entries at once are merged at once, if they are at least a quarter of what is there already."""
BULK_OVERLAYS = 4
"""So many overlays' worth at once are merged at once in any case."""
LANGUAGES_MAX = 1 << 16
"""Those that come after so many count as no language."""
OWN_BITS = 63
"""So many numbers of languages have a bit of their own in summaries; the rest share one."""
RETRY_S = 5.0
"""After a merge that failed, no write begins another for so long."""
DEAD_SHARE = 8
"""One entry of so many may be dead before a merge takes them out."""
_ANY_TIME = np.iinfo(np.int64).min
NO_SIEVE = Sieve(
    _ANY_TIME,
    np.empty(0, np.int64),
    np.empty(0, np.int32),
    False,
    np.empty(0, np.uint8),
    np.uint64(0),
)


class Overlay(NamedTuple):
    """What came after the base; `serials_N` ascend in the order of the writes."""

    segment: Segment
    video_ids_N: NDArray[np.object_]
    serials_N: Array


class State(NamedTuple):
    """Everything a reader needs, in one reference."""

    base: Base
    overlay: Overlay


class Batch(NamedTuple):
    """Entries to write, ascending by key, of distinct keys and videos."""

    keys_M: Array
    video_ids: Sequence[str]
    upload_times_ms_M: Array
    channels: Sequence[str]
    languages: Sequence[str]


_NO_OVERLAY = Overlay(empty_segment(), np.empty(0, np.object_), np.empty(0, np.int64))


class Entries:
    """Holds the newest `state`."""

    def __init__(self, *, bits: int, overlay_max: int) -> None:
        """Start empty; keys have `bits` bits, and an overlay of `overlay_max` entries is merged."""
        self._bits, self._overlay_max = bits, overlay_max
        self._writing = threading.Condition()
        self._overlay_keys: dict[str, int] = {}
        self._channels: dict[str, int] = {"": 0}
        self._languages: dict[str, int] = {"": 0}
        self._serial = 0
        self._merged_serial = -1  # of the merge under way: what it takes in has no later one
        self._removed_meanwhile: list[int] = []
        self._retry_at = 0.0
        self.merge_failure: Exception | None = None  # of the newest merge
        self.state = State(empty_base(bits=bits), _NO_OVERLAY)
        self.num_live = 0

    def key_of(self, video_id: str) -> int | None:
        """Return the key that a video holds, or None."""
        while True:
            state = self.state
            key = self._keys_of(state, [video_id])[0]
            if state is self.state:
                return key

    def insert(self, batch: Batch, *, refuse: Callable[[int, str, str], ValueError]) -> None:
        """Make the batch live and retire what its videos held before, all or nothing.

        A reader between the two steps finds such a video under neither key.

        Raises:
            ValueError: a key is held by another video, as `refuse(key, holder, other)` says it, or ids merged at once
                would take too many bytes.
        """
        num_new = len(batch.keys_M)
        with self._writing:
            state = self.state
            num_held = len(state.base.segment.keys_N) + len(state.overlay.video_ids_N)
            at_once = num_new >= max(BULK_MIN, num_held // 4)
            if at_once or num_new >= BULK_OVERLAYS * self._overlay_max:
                self._writing.wait_for(lambda: self._merged_serial < 0)
                at_once, state = True, self.state
            found = self._keys_of(state, batch.video_ids) if self.num_live else ()
            held = [key for key in found if key is not None]
            self._check_free(state, batch, set(held), refuse)
            new = overlay_segment(
                batch.keys_M,
                batch.upload_times_ms_M,
                _numbers(batch.channels, self._channels, np.int32),
                _numbers(batch.languages, self._languages, np.uint16, limit=LANGUAGES_MAX),
            )
            # Whatever can fail comes before the first video is retired.
            overlay = state.overlay._replace(segment=_without(state.overlay.segment, held))
            if at_once:
                base = self._absorbed(state.base, overlay, held, new, batch.video_ids)
                self.state, self._overlay_keys = State(base, _NO_OVERLAY), {}
                self.num_live += num_new - len(held)
                return
            self._serial += 1
            overlay = _with_entries(overlay, new, batch.video_ids, self._serial)
            for key in held:
                self._kill(key)
            self.num_live += num_new - len(held)
            # Ids first: whoever sees the entries can tell which of them are excluded.
            self._overlay_keys.update(zip(batch.video_ids, batch.keys_M.tolist(), strict=True))
            self.state = State(state.base, overlay)
            self._merge_when_due()

    def remove(self, video_id: str) -> bool:
        """Take a video out; return whether it was live."""
        with self._writing:
            [key] = self._keys_of(self.state, [video_id])
            if key is None:
                return False
            self._kill(key)
            self._overlay_keys.pop(video_id, None)
            self.num_live -= 1
            self._merge_when_due()
            return True

    def settle(self) -> None:
        """Merge what is in the overlay, and wait until it is.

        Raises:
            Exception: what the merge failed of; nothing has changed.
        """
        with self._writing:
            self._writing.wait_for(lambda: self._merged_serial < 0)
            if len(self.state.overlay.video_ids_N) == 0:
                return
            self._start_merge()
            self._writing.wait_for(lambda: self._merged_serial < 0)
            if self.merge_failure is not None:
                raise self.merge_failure

    def sieve(self, filters: Sequence[Filters]) -> tuple[State, Sieve]:
        """Return a state, and all filters in its numbers."""
        for _ in range(3):
            state = self.state
            sieve = self._sieve(state, filters)
            if state is self.state:
                return state, sieve
        with self._writing:  # writes come faster than ids are looked up
            return self.state, self._sieve(self.state, filters)

    def _sieve(self, state: State, filters: Sequence[Filters]) -> Sieve:
        oldest_ms = [each.uploaded_after_ms for each in filters]
        keys_E = [self._excluded_keys(state, each.excluded_video_ids) for each in filters]
        channels = {self._channels.get(one) for each in filters for one in each.excluded_channels}
        passes = np.ones(len(self._languages), np.uint8)
        asked = [each.languages for each in filters if each.languages]
        for languages in asked:
            wanted = [self._languages.get(one, 0) for one in languages]
            only = np.zeros(len(passes), np.uint8)
            only[[number for number in wanted if number < len(passes)]] = 1
            only[0] = 0
            passes &= only
        bits = np.unique(np.minimum(np.flatnonzero(passes), OWN_BITS)).tolist() if asked else []
        return Sieve(
            max((ms for ms in oldest_ms if ms is not None), default=_ANY_TIME),
            np.sort(keys_E[0] if len(keys_E) == 1 else np.concatenate(keys_E)),
            np.array(sorted(number for number in channels if number is not None), np.int32),
            bool(asked),
            passes,
            np.uint64(sum(1 << bit for bit in bits)),
        )

    def _excluded_keys(self, state: State, video_ids: Collection[str]) -> Array:
        """Return the keys of those that are live, in no order; right under the condition of `_keys_of`."""
        in_overlay = [key for key in map(self._overlay_keys.get, video_ids) if key is not None]
        keys_E = np.array(in_overlay, np.int64)
        if len(video_ids) == len(in_overlay) or len(state.base.segment.keys_N) == 0:
            return keys_E
        found_E = find(state.base, list(video_ids))  # none that the overlay holds: those are dead
        return np.concatenate([keys_E, state.base.segment.keys_N[found_E[found_E >= 0]]])

    def _keys_of(self, state: State, video_ids: Sequence[str]) -> list[int | None]:
        """Return the videos' live keys, right if `state` is the newest before and after."""
        keys = [self._overlay_keys.get(video_id) for video_id in video_ids]
        if len(state.base.segment.keys_N) == 0:
            return keys
        rest = [place for place, key in enumerate(keys) if key is None]
        if rest:
            found_E = find(state.base, [video_ids[place] for place in rest])
            for place, at in zip(rest, found_E.tolist(), strict=True):
                if at >= 0:
                    keys[place] = int(state.base.segment.keys_N[at])
        return keys

    def _check_free(
        self,
        state: State,
        batch: Batch,
        retired: set[int],
        refuse: Callable[[int, str, str], ValueError],
    ) -> None:
        found_M, new_M = np.empty((2, len(batch.keys_M)), np.int64)
        locate(state.base.segment, state.overlay.segment, NO_SIEVE, batch.keys_M, found_M, new_M)
        for place in np.flatnonzero((found_M >= 0) | (new_M >= 0)).tolist():
            key = int(batch.keys_M[place])
            if key in retired:
                continue
            at = int(new_M[place])
            holder = (
                str(state.overlay.video_ids_N[at])
                if at >= 0
                else text_of(state.base.texts, int(found_M[place]))
            )
            raise refuse(key, holder, batch.video_ids[place])

    def _kill(self, key: int) -> None:
        base, overlay = self.state
        at = _position(overlay.segment, key)
        if at is not None:
            overlay.segment.dead_N[at] = 1
            if overlay.serials_N[at] <= self._merged_serial:
                self._removed_meanwhile.append(key)
            return
        at = _position(base.segment, key)
        assert at is not None, "a live key is in the base or in the overlay"
        base.segment.dead_N[at] = 1
        if self._merged_serial >= 0:
            self._removed_meanwhile.append(key)

    def _absorbed(
        self,
        base: Base,
        overlay: Overlay,
        retired: Sequence[int],
        new: Segment,
        video_ids: Sequence[str],
    ) -> Base:
        """Return everything but what is retired as one base, by one merge."""
        if len(overlay.video_ids_N):
            overlay = _with_entries(overlay, new, video_ids, self._serial)
            new, video_ids = overlay.segment, overlay.video_ids_N.tolist()
        if len(base.segment.keys_N):
            kept = base._replace(segment=_without(base.segment, retired))
            return merged(kept, new, video_ids, bits=self._bits)
        return indexed(*new[:4], *laid_out(video_ids), bits=self._bits)

    def _merge_when_due(self) -> None:
        """Begin a merge where the overlay is full, or too much is dead; not soon after one that failed."""
        num_new = len(self.state.overlay.video_ids_N)
        num_held = len(self.state.base.segment.keys_N) + num_new
        most_dead = max(self._overlay_max, num_held // DEAD_SHARE)
        is_due = num_new >= self._overlay_max or num_held - self.num_live > most_dead
        if self._merged_serial < 0 and is_due and time.monotonic() >= self._retry_at:
            self._start_merge()

    def _start_merge(self) -> None:
        self._merged_serial, self._removed_meanwhile = self._serial, []
        thread = threading.Thread(
            target=self._merge, args=(self.state,), name="trie-merge", daemon=True
        )
        try:
            thread.start()
        except (RuntimeError, MemoryError) as failure:
            self._end_merge(failure)

    def _merge(self, state: State) -> None:
        failure: Exception | None = RuntimeError("the merge was broken off")
        try:
            ids_N = state.overlay.video_ids_N
            base = merged(state.base, state.overlay.segment, ids_N.tolist(), bits=self._bits)
            with self._writing:
                self._adopt(base)
            failure = None
        except Exception as raised:  # noqa: BLE001 - settle tells of whatever it is
            failure = raised.with_traceback(None)  # whose frames hold half a base
        finally:
            with self._writing:
                self._end_merge(failure)

    def _end_merge(self, failure: Exception | None) -> None:
        self._merged_serial, self._removed_meanwhile = -1, []
        self.merge_failure = failure
        if failure is not None:
            self._retry_at = time.monotonic() + RETRY_S
        self._writing.notify_all()

    def _adopt(self, base: Base) -> None:
        for key in self._removed_meanwhile:
            at = _position(base.segment, key)
            if at is not None:
                base.segment.dead_N[at] = 1
        overlay = _chosen(self.state.overlay, self.state.overlay.serials_N > self._merged_serial)
        keys = overlay.segment.keys_N.tolist()
        left = dict(zip(overlay.video_ids_N.tolist(), keys, strict=True))
        self.state, self._overlay_keys = State(base, overlay), left


def _position(segment: Segment, key: int) -> int | None:
    """Return where the live entry of a key is."""
    at = int(np.searchsorted(segment.keys_N, key))
    if at == len(segment.keys_N) or segment.keys_N[at] != key or segment.dead_N[at]:
        return None
    return at


def _without(segment: Segment, keys: Sequence[int]) -> Segment:
    """Return the segment with the entries of these keys dead, where it holds them; what it was stays as it is."""
    if not keys:
        return segment
    keys_E = np.array(keys, np.int64)
    at_E = np.searchsorted(segment.keys_N, keys_E)
    at_E, keys_E = at_E[at_E < len(segment.keys_N)], keys_E[at_E < len(segment.keys_N)]
    dead_N = segment.dead_N.copy()
    dead_N[at_E[segment.keys_N[at_E] == keys_E]] = 1
    return segment._replace(dead_N=dead_N)


def _numbers(
    names: Iterable[str], known: dict[str, int], dtype: type[np.integer], *, limit: int = 1 << 31
) -> Array:
    """Return the names' numbers; new ones are given the next, while there are fewer than the limit, then 0."""
    return np.array(
        [
            known.setdefault(name, len(known)) if len(known) < limit else known.get(name, 0)
            for name in names
        ],
        dtype,
    )


def _chosen(overlay: Overlay, chosen_N: Array) -> Overlay:
    """Return the living entries among the chosen."""
    chosen_N = chosen_N & (overlay.segment.dead_N == 0)
    if chosen_N.all():
        return overlay
    return Overlay(
        overlay_segment(*(column[chosen_N] for column in overlay.segment[:4])),
        overlay.video_ids_N[chosen_N],
        overlay.serials_N[chosen_N],
    )


def _with_entries(overlay: Overlay, new: Segment, video_ids: Sequence[str], serial: int) -> Overlay:
    """Return the overlay's living entries with new ones in their places."""
    overlay = _chosen(overlay, np.ones(len(overlay.serials_N), np.bool_))
    places_M = np.searchsorted(overlay.segment.keys_N, new.keys_N)
    ids_M = np.empty(len(video_ids), np.object_)
    ids_M[:] = video_ids
    columns = (
        np.insert(column, places_M, added)
        for column, added in zip(overlay.segment[:4], new[:4], strict=True)
    )
    return Overlay(
        overlay_segment(*columns),
        np.insert(overlay.video_ids_N, places_M, ids_M),
        np.insert(overlay.serials_N, places_M, serial),
    )

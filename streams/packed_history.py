"""Histories of many users in ten bytes a watch, and whole shards of watches merged into them at once.

A packed history is a `bytes` of slots. The first has the number of the user's features and that of the watches; then
come the watches, oldest first, and unused slots up to a multiple of `SLOTS_AT_ONCE`, so that the places of histories
that grew fit others. A watch:

| bits | 32 | 25 | 7 | 3 | 13 |
| --- | --- | --- | --- | --- | --- |
| what | event time, seconds | number of the video | percent | surface | seconds watched |

Numbers of videos and features are of one process (`Numbered`); in `user.histories` they are spelled out. Shape
suffixes: U users, E watches (of all users, one user's after the other). numba's cache knows only this file, so compiled
code takes no constants from others.
"""

from __future__ import annotations

import base64
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from numba import njit

from infra.errors import TransientError
from streams.events import HISTORY_WATCH_CHARS
from streams.history import PACKED_WATCH, WireHistory, decode_watches, decode_wire
from streams.watches import UserFeatures

Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[Any]
T = TypeVar("T", bound=Hashable)
SLOT: Final = np.dtype([("head", "<u8"), ("tail", "<u2")])
_TIME_SHIFT, _VIDEO_SHIFT, _SURFACE_SHIFT = 32, 7, 13
MAX_VIDEOS = 1 << 25
SLOTS_AT_ONCE = 17
"""A sixth of a history of 100 watches, and its first slot."""
USERS_AT_ONCE = 1_000

_encode = msgspec.json.Encoder().encode


class Numbered(dict[T, int]):
    """Numbers things from 0 in the order in which they are first asked for: `numbered[thing]`.

    Attributes:
        things: by number.
    """

    def __init__(self, things: Iterable[T] = (), *, limit: int = MAX_VIDEOS) -> None:
        """Raise TransientError, later, when there are more than `limit`: a restarted process numbers what is in use."""
        super().__init__()
        self.things: list[T] = []
        self._limit = limit
        for thing in things:
            self[thing]

    def __missing__(self, thing: T) -> int:
        number = len(self.things)
        if number >= self._limit:
            raise TransientError(
                f"more than {self._limit:,} different ids in one sealer; started again it numbers only those still "
                "in a history; if this comes back, let more sealers share the partitions"
            )
        self[thing] = number
        self.things.append(thing)
        return number


class Names(NamedTuple):
    """What the numbers in packed histories stand for; number 0 of the features is None."""

    videos: Numbered[str]
    features: Numbered[UserFeatures | None]


def new_names() -> Names:
    """Return empty names."""
    return Names(Numbered(), Numbered([None]))


class Entries(NamedTuple):
    """The watches of many histories as columns: `lengths_U` of each user, user after user, and the users' features."""

    lengths_U: Ints
    features_U: Ints
    time_s_E: npt.NDArray[np.uint32]
    video_E: npt.NDArray[np.int32]
    percent_E: npt.NDArray[np.uint8]
    surface_E: npt.NDArray[np.uint8]
    watched_s_E: npt.NDArray[np.uint16]


class Packed(NamedTuple):
    """Many histories in slots, `lengths_U` from `begins_U` on; what stands between them is of no account here."""

    slots: Slots
    begins_U: Ints
    lengths_U: Ints
    features_U: Ints


def join(histories: Sequence[bytes]) -> Packed:
    """Return packed histories side by side; an empty `bytes` is one without watches."""
    sizes_U = np.fromiter(map(len, histories), np.int64, len(histories)) // SLOT.itemsize
    slots = np.frombuffer(b"".join(histories), SLOT)
    known_U = sizes_U > 0
    first_U = np.cumsum(sizes_U) - sizes_U
    features_U, lengths_U = np.zeros((2, len(histories)), np.int64)
    features_U[known_U] = slots["head"][first_U[known_U]].astype(np.int64)
    lengths_U[known_U] = slots["tail"][first_U[known_U]]
    return Packed(slots, first_U + 1, lengths_U, features_U)


def split(packed: Packed) -> list[bytes]:
    """Return each user's packed history; the slots must be laid out as `merge` does."""
    first_U = (SLOT.itemsize * (packed.begins_U - 1)).tolist()
    data = packed.slots.tobytes()
    return [data[first:end] for first, end in pairwise([*first_U, len(data)])]


def pack(entries: Entries) -> Packed:
    """Return columns as slots, without room between the users."""
    slots = np.empty(len(entries.time_s_E), SLOT)
    slots["head"] = (
        (entries.time_s_E.astype(np.uint64) << np.uint64(_TIME_SHIFT))
        | (entries.video_E.astype(np.uint64) << np.uint64(_VIDEO_SHIFT))
        | entries.percent_E
    )
    slots["tail"] = (entries.surface_E.astype(np.uint16) << _SURFACE_SHIFT) | entries.watched_s_E
    lengths_U = entries.lengths_U
    return Packed(slots, np.cumsum(lengths_U) - lengths_U, lengths_U, entries.features_U)


def unpack(packed: Packed) -> Entries:
    """Return slots as columns."""
    num = int(packed.lengths_U.sum())
    entries = Entries(
        packed.lengths_U,
        packed.features_U,
        np.empty(num, np.uint32),
        np.empty(num, np.int32),
        np.empty(num, np.uint8),
        np.empty(num, np.uint8),
        np.empty(num, np.uint16),
    )
    _unpack(packed.slots, packed.begins_U, packed.lengths_U, *entries[2:])
    return entries


@njit(cache=True, nogil=True)
def _unpack(
    slots: Any, begins_U: Any, lengths_U: Any, time_s_E: Any, video_E: Any, percent_E: Any, surface_E: Any,
    watched_s_E: Any,
) -> None:  # fmt: skip
    at = 0
    for user in range(len(lengths_U)):
        for place in range(begins_U[user], begins_U[user] + lengths_U[user]):
            head, tail = slots[place]["head"], slots[place]["tail"]
            time_s_E[at] = head >> np.uint64(_TIME_SHIFT)
            video_E[at] = (head >> np.uint64(_VIDEO_SHIFT)) & np.uint64(MAX_VIDEOS - 1)
            percent_E[at] = head & np.uint64((1 << _VIDEO_SHIFT) - 1)
            surface_E[at] = tail >> _SURFACE_SHIFT
            watched_s_E[at] = tail & ((1 << _SURFACE_SHIFT) - 1)
            at += 1


def merge(old: Packed, new: Packed, *, length: int) -> Packed:
    """Return the newest `length` watches of each user; at the same second, new ones come after old ones.

    Both have the same users, and each user's watches are in the order of their times. The features are the new ones,
    where there are any.
    """
    lengths_U = np.minimum(old.lengths_U + new.lengths_U, length)
    sizes_U = -(-(lengths_U + 1) // SLOTS_AT_ONCE) * SLOTS_AT_ONCE
    first_U = np.cumsum(sizes_U) - sizes_U
    features_U = np.where(new.features_U > 0, new.features_U, old.features_U)
    slots = np.zeros(sizes_U.sum(), SLOT)
    slots["head"][first_U], slots["tail"][first_U] = features_U, lengths_U
    _merge(*old[:3], *new[:3], slots, first_U + 1, lengths_U)
    return Packed(slots, first_U + 1, lengths_U, features_U)


@njit(cache=True, nogil=True)
def _merge(
    old: Any, old_begins_U: Any, old_lengths_U: Any, new: Any, new_begins_U: Any, new_lengths_U: Any,
    merged: Any, begins_U: Any, lengths_U: Any,
) -> None:  # fmt: skip
    time_shift = np.uint64(_TIME_SHIFT)
    for user in range(len(lengths_U)):
        old_first, new_first = old_begins_U[user], new_begins_U[user]
        # From the newest on, so that those beyond the length are never looked at.
        old_at = old_first + old_lengths_U[user] - 1
        new_at = new_first + new_lengths_U[user] - 1
        for place in range(begins_U[user] + lengths_U[user] - 1, begins_U[user] - 1, -1):
            if new_at >= new_first and (
                old_at < old_first
                or new[new_at]["head"] >> time_shift >= old[old_at]["head"] >> time_shift
            ):
                merged[place] = new[new_at]
                new_at -= 1
            else:
                merged[place] = old[old_at]
                old_at -= 1


def encode_histories(
    user_ids: Sequence[str], histories: Sequence[bytes], names: Names
) -> Iterator[bytes]:
    """Yield the bytes of the `UserHistory` event of each user."""
    for start in range(0, len(user_ids), USERS_AT_ONCE):
        entries = unpack(join(histories[start : start + USERS_AT_ONCE]))
        watches_E = np.zeros(len(entries.time_s_E), PACKED_WATCH)
        watches_E["time_s"], watches_E["watched_s"] = entries.time_s_E, entries.watched_s_E
        watches_E["percent"], watches_E["surface"] = entries.percent_E, entries.surface_E
        watches = base64.b64encode(watches_E.tobytes()).decode()
        video_ids = list(map(names.videos.things.__getitem__, entries.video_E.tolist()))
        bounds = pairwise([0, *np.cumsum(entries.lengths_U).tolist()])
        features = map(names.features.things.__getitem__, entries.features_U.tolist())
        for user_id, user, (first, end) in zip(
            user_ids[start : start + USERS_AT_ONCE], features, bounds, strict=True
        ):
            of_user = watches[HISTORY_WATCH_CHARS * first : HISTORY_WATCH_CHARS * end]
            yield _encode(WireHistory(user_id, video_ids[first:end], of_user, user))


def decode_histories(values: Iterable[bytes], names: Names) -> tuple[list[str], list[bytes]]:
    """Return the users and the packed histories in the bytes of `UserHistory` events.

    Raises:
        msgspec.DecodeError: some bytes are not one; the sealer wrote them, so it must not go on.
    """
    found = [decode_wire(value) for value in values]
    watches_E = decode_watches("".join([each.watches for each in found]))
    video_ids = chain.from_iterable(each.video_ids for each in found)
    entries = Entries(
        np.fromiter((len(each.video_ids) for each in found), np.int64, len(found)),
        np.array([names.features[each.user] for each in found], np.int64),
        watches_E["time_s"],
        np.fromiter(map(names.videos.__getitem__, video_ids), np.int32, len(watches_E)),
        watches_E["percent"],
        watches_E["surface"],
        watches_E["watched_s"],
    )
    packed = merge(join([b""] * len(found)), pack(entries), length=len(watches_E))
    return [each.user_id for each in found], split(packed)

"""Histories of many users in ten bytes a watch, and whole shards of watches merged into them at once.

A packed history is a `bytes` of slots. The first has the number of the user's features and that of the watches; then
come the watches, oldest first, and unused slots up to a multiple of `SLOTS_AT_ONCE`, so that the places of histories
that grew fit others. A watch:

| bits | 32 | 25 | 7 | 3 | 13 |
| --- | --- | --- | --- | --- | --- |
| what | event time, seconds | number of the video | percent | surface | seconds watched |

Numbers of videos and features are of one process (`Numbered`); in `user.histories` they are spelled out. Shape
suffixes: U users, E entries (of all users, one user's after the other).
"""

from __future__ import annotations

import base64
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from infra.errors import TransientError
from streams.events import HISTORY_WATCH_CHARS
from streams.history import (
    MAX_PERCENT,
    MAX_WATCHED_S,
    PACKED_WATCH,
    WireHistory,
    decode_watches,
    decode_wire,
)
from streams.watches import UserFeatures

Ints = npt.NDArray[np.int64]
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


@dataclass(frozen=True, slots=True)
class Entries:
    """Histories side by side: `lengths_U` entries of each user, user after user, and the users' features."""

    lengths_U: Ints
    features_U: Ints
    time_s_E: Ints
    video_E: Ints
    percent_E: Ints
    surface_E: Ints
    watched_s_E: Ints

    def take(self, which_E: npt.NDArray[Any], lengths_U: Ints, features_U: Ints) -> Entries:
        """Return some entries, or the same in another order, as `lengths_U` of each user."""
        return Entries(
            lengths_U,
            features_U,
            self.time_s_E[which_E],
            self.video_E[which_E],
            self.percent_E[which_E],
            self.surface_E[which_E],
            self.watched_s_E[which_E],
        )


def unpack(histories: Sequence[bytes]) -> Entries:
    """Return the entries of packed histories; those of an empty `bytes` are none."""
    sizes_U = np.fromiter(map(len, histories), np.int64, len(histories)) // SLOT.itemsize
    slots = np.frombuffer(b"".join(histories), SLOT)
    known_U = sizes_U > 0
    first_U = (np.cumsum(sizes_U) - sizes_U)[known_U]
    features_U, lengths_U = np.zeros((2, len(histories)), np.int64)
    features_U[known_U] = slots["head"][first_U].astype(np.int64)
    lengths_U[known_U] = slots["tail"][first_U]
    entries = slots[_entry_places(first_U, lengths_U[known_U])]
    head, tail = entries["head"].astype(np.int64), entries["tail"].astype(np.int64)
    return Entries(
        lengths_U,
        features_U,
        (head >> _TIME_SHIFT) & 0xFFFF_FFFF,
        (head >> _VIDEO_SHIFT) & (MAX_VIDEOS - 1),
        head & MAX_PERCENT,
        tail >> _SURFACE_SHIFT,
        tail & MAX_WATCHED_S,
    )


def _entry_places(first_U: Ints, lengths_U: Ints) -> Ints:
    """Return the slots of all entries, those of each user beginning after the user's first slot."""
    ends_U = np.cumsum(lengths_U)
    return np.repeat(first_U + 1 - (ends_U - lengths_U), lengths_U) + np.arange(lengths_U.sum())


def pack(entries: Entries) -> list[bytes]:
    """Return each user's packed history."""
    sizes_U = -(-(entries.lengths_U + 1) // SLOTS_AT_ONCE) * SLOTS_AT_ONCE
    ends_U = np.cumsum(sizes_U)
    first_U = ends_U - sizes_U
    slots = np.zeros(sizes_U.sum(), SLOT)
    places = _entry_places(first_U, entries.lengths_U)
    slots["head"][first_U] = entries.features_U
    slots["tail"][first_U] = entries.lengths_U
    slots["head"][places] = (
        (entries.time_s_E.astype(np.uint64) << np.uint64(_TIME_SHIFT))
        | (entries.video_E << _VIDEO_SHIFT).astype(np.uint64)
        | entries.percent_E.astype(np.uint64)
    )
    slots["tail"][places] = (entries.surface_E << _SURFACE_SHIFT) | entries.watched_s_E
    packed = slots.tobytes()
    bounds = (SLOT.itemsize * np.concatenate([[0], ends_U])).tolist()
    return [packed[start:end] for start, end in pairwise(bounds)]


def merge(old: Entries, new: Entries, *, length: int) -> Entries:
    """Return the newest `length` entries of each user; at the same second, new ones come after old ones.

    Both have the same users, and each user's entries are in the order of their times. The features are the new ones,
    where there are any.
    """
    users = np.arange(len(old.lengths_U))
    user_E = np.concatenate([np.repeat(users, old.lengths_U), np.repeat(users, new.lengths_U)])
    both = Entries(
        *(
            np.concatenate([getattr(old, name), getattr(new, name)])
            for name in Entries.__dataclass_fields__
        )
    )
    order_E = np.argsort(user_E << _TIME_SHIFT | both.time_s_E, kind="stable")
    total_U = old.lengths_U + new.lengths_U
    ends_U = np.cumsum(total_U)
    from_end_E = np.repeat(ends_U, total_U) - np.arange(len(order_E))
    features_U = np.where(new.features_U > 0, new.features_U, old.features_U)
    return both.take(order_E[from_end_E <= length], np.minimum(total_U, length), features_U)


def encode_histories(
    user_ids: Sequence[str], histories: Sequence[bytes], names: Names
) -> Iterator[bytes]:
    """Yield the bytes of the `UserHistory` event of each user."""
    for start in range(0, len(user_ids), USERS_AT_ONCE):
        entries = unpack(histories[start : start + USERS_AT_ONCE])
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
        watches_E["time_s"].astype(np.int64),
        np.fromiter(map(names.videos.__getitem__, video_ids), np.int64, len(watches_E)),
        watches_E["percent"].astype(np.int64),
        watches_E["surface"].astype(np.int64),
        watches_E["watched_s"].astype(np.int64),
    )
    return [each.user_id for each in found], pack(entries)

"""A user's last watches, bounded, as `user.histories` carries them and as a server keeps them; knows nothing of Kafka.

What a history holds is a function of the user's records in the order of their offsets: the newest watches by event
time in seconds, those of the same second in the order of their arrival. Where shards begin and end leaves no trace in
it, so a sealer that was killed and started again arrives at the same histories. The sealer keeps them packed:
`streams.packed_history`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import msgspec
from msgspec import Struct

from streams.events import Surface, UserHistory, WatchEvent
from streams.watches import UserFeatures, Watch

MAX_PERCENT = 127
"""Through, and a good quarter again: a loop that plays on says no more. What seven bits hold."""
MAX_WATCHED_S = 8_191
"""Over two hours. What thirteen bits hold."""


class Entry(Struct, frozen=True, gc=False):
    """One watch in a history, its time in whole seconds; the context is known until the watch is sealed."""

    video_id: str
    percent: int
    watched_s: int
    event_time_ms: int
    surface: Surface
    context_video_id: str | None = None


class Columns(Struct):
    """The msgspec mirror of the contract's `UserHistory`."""

    user_id: str
    video_ids: list[str]
    surfaces: list[Surface]
    percents: list[int]
    watched_s: list[int]
    elapsed_s: list[int]
    user: UserFeatures | None = None


_decode_columns = msgspec.json.Decoder(Columns).decode


def decode_columns(value: bytes) -> Columns:
    """Return the columns in the bytes of a `UserHistory` event.

    Raises:
        msgspec.DecodeError: the bytes are not one; the sealer wrote them, so it must not go on.
    """
    found = _decode_columns(value)
    lengths = {
        len(column)
        for column in (
            found.video_ids,
            found.surfaces,
            found.percents,
            found.watched_s,
            found.elapsed_s,
        )
    }
    if len(lengths) > 1:
        raise msgspec.DecodeError(f"columns of different lengths: {sorted(lengths)}")
    return found


def percent_watched(watch: Watch | WatchEvent) -> int:
    """Return how much of the video was watched, in percent, at most `MAX_PERCENT`."""
    return round(min(100 * watch.watched_s / watch.duration_s, MAX_PERCENT))


def history_entry(watch: Watch | WatchEvent) -> Entry:
    """Return the entry of a watch."""
    return Entry(
        watch.video_id,
        percent_watched(watch),
        min(round(watch.watched_s), MAX_WATCHED_S),
        watch.event_time_ms // 1000 * 1000,
        watch.surface,
        watch.context_video_id,
    )


def user_history(
    user_id: str, entries: Sequence[Entry], user: UserFeatures | None = None
) -> UserHistory:
    """Return the contract's event of a history, oldest entry first."""
    times = [0, *(entry.event_time_ms // 1000 for entry in entries)]
    return UserHistory(
        user_id=user_id,
        video_ids=tuple(entry.video_id for entry in entries),
        surfaces=tuple(entry.surface for entry in entries),
        percents=tuple(entry.percent for entry in entries),
        watched_s=tuple(entry.watched_s for entry in entries),
        elapsed_s=tuple(after - before for before, after in pairwise(times)),
        user=None if user is None else msgspec.structs.asdict(user),
    )


class History:
    """The newest watches of one user, oldest first; a watch of the same video in the same second is the same one."""

    __slots__ = ("entries", "user")

    def __init__(self, entries: Iterable[Entry] = (), user: UserFeatures | None = None) -> None:
        self.entries = list(entries)
        self.user = user

    def add(self, watch: Watch, *, length: int) -> bool:
        """Add a watch and forget the oldest beyond `length`; return False for one that is already there."""
        entry = history_entry(watch)
        if not self.join([entry], length=length):
            return False
        if watch.user is not None:
            self.user = watch.user
        return True

    def join(self, entries: Iterable[Entry], *, length: int) -> list[Entry]:
        """Add what is not there yet and forget the oldest beyond `length`; return what was not there."""
        known = {(entry.video_id, entry.event_time_ms) for entry in self.entries}
        unseen = [entry for entry in entries if (entry.video_id, entry.event_time_ms) not in known]
        for entry in unseen:
            at = bisect_right(
                self.entries, entry.event_time_ms, key=lambda held: held.event_time_ms
            )
            self.entries.insert(at, entry)
        del self.entries[: max(0, len(self.entries) - length)]
        return unseen


def decode_history(value: bytes) -> tuple[str, History]:
    """Return the user and the history in the bytes of a `UserHistory` event.

    Raises:
        msgspec.DecodeError: the bytes are not one.
    """
    found = decode_columns(value)
    entries = map(
        Entry,
        found.video_ids,
        found.percents,
        found.watched_s,
        (1000 * time_s for time_s in accumulate(found.elapsed_s)),
        found.surfaces,
    )
    return found.user_id, History(entries, found.user)

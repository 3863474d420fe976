"""A user's last watches, bounded, and without those that were delivered twice; knows nothing of Kafka.

What a history holds is a function of the user's records in the order of their offsets, one by one. Where shards begin
and end leaves no trace in it, so a sealer that was killed and started again arrives at the same histories.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b

import msgspec
from msgspec import Struct, field

from streams.events import HistoryEntry, Surface, WatchEvent
from streams.watches import UserFeatures, Watch

MAX_PERCENT = 1_000
"""Ten times through; a loop that plays on says no more."""


class Entry(Struct, frozen=True, gc=False, omit_defaults=True):
    """One watch in a history: the msgspec mirror of the contract's `HistoryEntry`, same bytes."""

    video_id: str = field(name="v")
    percent: int = field(name="p")
    watched_s: float = field(name="s")
    event_time_ms: int = field(name="t")
    surface: Surface = field(name="f")
    event_hash: int = field(name="e")
    context_video_id: str | None = field(name="c", default=None)


class _UserHistory(Struct, omit_defaults=True):
    user_id: str
    entries: list[Entry]
    user: UserFeatures | None = None


_decode_history = msgspec.json.Decoder(_UserHistory).decode
_encode_history = msgspec.json.Encoder().encode


def event_hash(event_id: str) -> int:
    """Return 48 bits of the event id's hash; two of 100 watches share it once in 6e10 histories."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=6).digest())


def percent_watched(watch: Watch | WatchEvent) -> int:
    """Return how much of the video was watched, in percent, at most `MAX_PERCENT`."""
    return min(round(100 * watch.watched_s / watch.duration_s), MAX_PERCENT)


def history_entry(watch: WatchEvent) -> HistoryEntry:
    """Return the contract's entry for a watch, as the sealer would write it."""
    return HistoryEntry(
        video_id=watch.video_id,
        percent=percent_watched(watch),
        watched_s=round(watch.watched_s, 1),
        event_time_ms=watch.event_time_ms,
        surface=watch.surface,
        event_hash=event_hash(watch.event_id),
        context_video_id=watch.context_video_id,
    )


class History:
    """The newest watches of one user by event time, oldest first.

    A redelivered event is recognised while its first delivery is among them.
    """

    __slots__ = ("_hashes", "entries", "user")

    def __init__(
        self, entries: list[Entry] | None = None, user: UserFeatures | None = None
    ) -> None:
        self.entries = entries or []
        self.user = user
        self._hashes = [entry.event_hash for entry in self.entries]

    def add(self, watch: Watch, *, length: int) -> bool:
        """Add a watch and forget the oldest beyond `length`; return False for one that is already there."""
        hashed = event_hash(watch.event_id)
        if hashed in self._hashes:
            return False
        entries, time_ms = self.entries, watch.event_time_ms
        entry = Entry(
            watch.video_id,
            percent_watched(watch),
            round(watch.watched_s, 1),
            time_ms,
            watch.surface,
            hashed,
            watch.context_video_id,
        )
        if not entries or entries[-1].event_time_ms <= time_ms:
            entries.append(entry)
            self._hashes.append(hashed)
        else:
            index = bisect_right(entries, time_ms, key=lambda entry: entry.event_time_ms)
            entries.insert(index, entry)
            self._hashes.insert(index, hashed)
        surplus = len(entries) - length
        if surplus > 0:
            del entries[:surplus], self._hashes[:surplus]
        if watch.user is not None:
            self.user = watch.user
        return True


def encode_history(user_id: str, history: History) -> bytes:
    """Return the bytes of the `UserHistory` event."""
    return _encode_history(_UserHistory(user_id, history.entries, history.user))


def decode_history(value: bytes) -> tuple[str, History]:
    """Return the user and the history in the bytes of a `UserHistory` event.

    Raises:
        msgspec.DecodeError: the bytes are not one; the sealer wrote them, so it must not go on.
    """
    found = _decode_history(value)
    return found.user_id, History(found.entries, found.user)

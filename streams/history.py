"""A user's last watches, bounded, as `user.histories` carries them and as a server keeps them; knows nothing of Kafka.

What a history holds is a function of the user's records in the order of their offsets: the newest watches by event
time in seconds, those of the same second in the order of their arrival. Where shards begin and end leaves no trace in
it, so a sealer that was killed and started again arrives at the same histories. The sealer keeps them packed:
`streams.packed_history`.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from streams.events import HISTORY_WATCH_CHARS, SURFACES, Surface, UserHistory, WatchEvent
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


PACKED_WATCH = np.dtype(
    [("time_s", "<u4"), ("watched_s", "<u2"), ("percent", "u1"), ("surface", "u1"), ("zero", "u1")]
)
"""The 9 bytes of `UserHistory.watches`: a multiple of 3, so that base64 of many is the base64 of each, joined."""


class WireHistory(Struct):
    """The msgspec mirror of the contract's `UserHistory`."""

    user_id: str
    video_ids: list[str]
    watches: str
    user: UserFeatures | None = None


_decode = msgspec.json.Decoder(WireHistory).decode


def decode_wire(value: bytes) -> WireHistory:
    """Return the history in the bytes of a `UserHistory` event, whose watches are not looked at yet.

    Raises:
        msgspec.DecodeError: the bytes are not one.
    """
    found = _decode(value)
    if len(found.watches) != HISTORY_WATCH_CHARS * len(found.video_ids):
        raise msgspec.DecodeError(
            f"{len(found.video_ids)} videos and {len(found.watches)} characters of watches"
        )
    return found


def decode_watches(watches: str) -> npt.NDArray[Any]:
    """Return the watches, of `PACKED_WATCH`, in the base64 of one history or of several, joined.

    Raises:
        msgspec.DecodeError: the text is not base64 of watches.
    """
    try:
        found = np.frombuffer(base64.b64decode(watches, validate=True), PACKED_WATCH)
    except ValueError as error:
        raise msgspec.DecodeError(f"no watches in base64: {error}") from error
    for name, most in (
        ("surface", len(SURFACES) - 1), ("percent", MAX_PERCENT), ("watched_s", MAX_WATCHED_S),
    ):  # fmt: skip
        if found[name].max(initial=0) > most:
            raise msgspec.DecodeError(f"{name} is {found[name].max()}, at most {most} is possible")
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
    packed = np.array(
        [
            (
                entry.event_time_ms // 1000,
                entry.watched_s,
                entry.percent,
                SURFACES.index(entry.surface),
                0,
            )
            for entry in entries
        ],
        PACKED_WATCH,
    )
    return UserHistory(
        user_id=user_id,
        video_ids=tuple(entry.video_id for entry in entries),
        watches=base64.b64encode(packed.tobytes()).decode(),
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
    found = decode_wire(value)
    watches = decode_watches(found.watches).tolist()
    entries = (
        Entry(video_id, percent, watched_s, 1000 * time_s, SURFACES[surface])
        for video_id, (time_s, watched_s, percent, surface, _) in zip(
            found.video_ids, watches, strict=True
        )
    )
    return found.user_id, History(entries, found.user)

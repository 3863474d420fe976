"""What was shown to whom and has not been judged yet: `serving.impressions`, followed for the ranking adapter.

An impression is judged by the user's first watch after it, whenever its shard is learned from, which may be some rounds
later. So a round reads a window that reaches back behind the end of the round before: its first and last offsets are in
the round's plan, and whoever repeats it gets the same. Which of the window's impressions a round judges follows from
its rows alone (`workers.adapter_rounds`).

Delivery: an impression is judged once at most, and not at all where the window is too short for it, where the broker
has dropped it, or where it is older than the first start with this adapter. Training waits for none.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Container
from typing import NamedTuple

from confluent_kafka import Message

from infra.errors import DecodeError
from infra.log import get_logger
from infra.settings import KafkaSettings
from streams.client import TopicReader
from streams.codec import decode
from streams.events import ImpressionsShown
from streams.topics import IMPRESSIONS

WINDOW_MAX = 50_000
"""Impressions that wait for a watch: some 100 MB of memory with twenty videos each."""

log = get_logger()
Offsets = dict[int, int]


class Shown(NamedTuple):
    """One answer, as far as ranking learns from it."""

    user_id: str
    surface: str
    video_ids: tuple[str, ...]
    event_time_ms: int


class _Held(NamedTuple):
    partition: int
    offset: int
    shown: Shown


class ImpressionIntake:
    """Follows `serving.impressions` from the window of a checkpoint, or from its end where there is none."""

    def __init__(self, settings: KafkaSettings, window: Offsets, *, end: Offsets | None) -> None:
        """Start at `window`, the first offsets that still count; a round that was begun is given what is before `end`.

        What came after it is taken by the next `read`, so that nothing of the round's falls out of the window for it.
        """
        start = {(IMPRESSIONS.name, at): offset for at, offset in window.items()}
        self._held: deque[_Held] = deque()
        self._reader = TopicReader(settings, [IMPRESSIONS], start=start, from_end=not window)
        self._from = self._next_offsets()
        self._held_back: list[Message] = []
        for _, message in self._reader.read_to_end() if end is not None else ():
            if end is not None and message.offset() < end.get(message.partition(), 0):
                self._take(message)
            else:
                self._held_back.append(message)

    def _next_offsets(self) -> Offsets:
        return {at: offset for (_, at), offset in self._reader.next_offsets.items()}

    def read(self) -> tuple[Offsets, Offsets]:
        """Read to the end; return the window's first offsets and those behind its last."""
        held_back, self._held_back = self._held_back, []
        for message in held_back:
            self._take(message)
        for _, message in self._reader.read_to_end():
            self._take(message)
        return dict(self._from), self._next_offsets()

    def _take(self, message: Message) -> None:
        try:
            event = decode(ImpressionsShown, message.value())
        except DecodeError as error:
            # The freshness worker, which owns the stream, counts it and writes the dead letter.
            log.warning("record_refused", topic=IMPRESSIONS.name, reason=error.reason)
            return
        if event.user_id is None:
            return
        video_ids = tuple(sys.intern(item.video_id) for item in event.items)
        shown = Shown(event.user_id, event.surface, video_ids, event.event_time_ms)
        self._held.append(_Held(message.partition(), message.offset(), shown))
        if len(self._held) > WINDOW_MAX:
            oldest = self._held.popleft()
            self._from[oldest.partition] = oldest.offset + 1

    def of_users(self, users: Container[str], first: Offsets, end: Offsets) -> list[Shown]:
        """Return what a window holds of some users, in the order of their partitions."""
        found = [
            each
            for each in self._held
            if each.shown.user_id in users
            and first.get(each.partition, 0) <= each.offset < end.get(each.partition, 0)
        ]
        return [each.shown for each in sorted(found, key=lambda each: each[:2])]

    def close(self) -> None:
        """Leave the brokers."""
        self._reader.close()

"""Plays a timeline into Kafka at a steady number of events per second; knows nothing of what the events say.

Paced by events, not by event time: half of MovieLens spans 11 years and comes in bursts, which a constant speed-up
would keep. So wall-clock delays are to be measured on append times, ages and windows on the replay's own clock.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from infra.settings import KafkaSettings
from streams.client import flush, producer, send
from streams.timeline import TimelineEvent


class ReplayClock:
    """The replay's time: the event time of the newest event sent. Safe to read from any thread."""

    def __init__(self, start_ms: int = 0) -> None:
        self._now_ms = start_ms

    def now_ms(self) -> int:
        """Return the event time that the replay has reached."""
        return self._now_ms

    def advance_to(self, event_time_ms: int) -> None:
        """Move on to this time; an earlier one changes nothing."""
        self._now_ms = max(self._now_ms, event_time_ms)


def pace(
    events: Iterable[TimelineEvent],
    events_per_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[TimelineEvent]:
    """Yield event i at i / events_per_s after the first, or at once where that has passed.

    The schedule is absolute: a slow consumer delays single events, never the rest. `math.inf` does not wait at all.

    Raises:
        ValueError: `events_per_s` is not positive.
    """
    if not events_per_s > 0:
        raise ValueError(f"events_per_s is {events_per_s}; expected a positive number")
    start = now()
    for number, event in enumerate(events):
        wait_s = start + number / events_per_s - now()
        if wait_s > 0:
            sleep(wait_s)
        yield event


def replay(
    settings: KafkaSettings,
    events: Iterable[TimelineEvent],
    *,
    events_per_s: float,
    clock: ReplayClock | None = None,
    before: Callable[[TimelineEvent], None] | None = None,
    on_progress: Callable[[Counter[str]], None] | None = None,
) -> Counter[str]:
    """Send the events in order, `events_per_s` of them each second, and return how many there were of each kind.

    `before` sees each event when it is due and not yet sent, so that the future can be asked for. `on_progress` sees
    the counts after each event; it must be quick, as must `before`: what comes late makes up for it in a burst.

    Delivery: everything sent is acknowledged by all replicas when this returns. If the process dies before, the
    last few may be missing; a replay from the start sends the same event ids, which the readers drop.
    Blocks: for the schedule, and while the producer's queue is full.

    Raises:
        TransientError: the brokers did not acknowledge the end of the replay.
    """
    client = producer(settings)
    sent: Counter[str] = Counter()
    for each in pace(events, events_per_s):
        if before is not None:
            before(each)
        send(client, settings, each.topic, each.key, each.event)
        sent[each.kind] += 1
        if clock is not None:
            clock.advance_to(each.event_time_ms)
        if on_progress is not None:
            on_progress(sent)
    flush(client)
    return sent

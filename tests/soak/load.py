"""Uploads, removals and watches at fixed rates, in an order that follows from the seed, some of them broken.

All times on the events' clock, which runs faster than the wall's. Knows nothing of what becomes of them.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from infra.settings import KafkaSettings
from streams.client import producer
from streams.clips import clip_upload
from streams.events import Surface, VideoRemoved, VideoUploaded, WatchEvent, to_json
from streams.timeline import Timeline
from streams.topics import UPLOADS, WATCHES, Topic
from tests.soak.ledger import Place, Seen, Sent
from tests.soak.options import EVENT_HOURS, SoakOptions
from tests.soak.threads import KeptThread

TICK_S = 0.05
CLICKED_SHARE = 0.5
"""Of the watches, those of a video that was just shown, while there is one."""
NEW_SHARE = 0.4
"""Of the others, those of a video of ours."""
DURATION_S = 600.0
FLUSH_S = 120.0
BAD: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "invalid_json": lambda event: json.dumps(event).encode()[:-7],
    "invalid_event": lambda event: json.dumps(
        {name: value for name, value in event.items() if name != "video_id"}
    ).encode(),
    "unknown_schema_version": lambda event: json.dumps(event | {"schema_version": 99}).encode(),
}
"""By the reason for which it is refused, what is done to an event."""


@dataclass(frozen=True)
class Shown:
    """The first video of an answer, and whose it was."""

    request_id: str
    user_id: str
    arm: str
    surface: Surface
    video_id: str


class Stream:
    """Makes the next event of each kind: a function of the seed, but for what was shown and is live by then."""

    def __init__(self, options: SoakOptions, past: Timeline, later: Timeline, seen: Seen) -> None:
        self.shown: deque[Shown] = deque(maxlen=200)
        self.live: deque[str] = deque()
        """Uploads of ours that were not removed, oldest first."""
        self.past = sorted({one.video_id for one in past.uploads()})
        self._options, self._seen = options, seen
        self._rng = random.Random(f"load {options.seed}")
        self._templates = [one for one in later.uploads() if one.type == "uploaded"]
        self._numbers = {"upload": 0, "watch": 0}
        self._started_s = time.time()
        self._before: WatchEvent | None = None

    def event_time_ms(self) -> int:
        """Return what time it is on the events' clock: as far behind the wall clock as a run is long."""
        elapsed_s = time.time() - self._started_s
        behind_s = EVENT_HOURS * 3600 - elapsed_s * self._options.event_speed
        return round(1000 * (self._started_s + elapsed_s - max(0.0, behind_s)))

    def upload(self) -> VideoUploaded:
        """Return the next upload: real words, and now and then a real clip."""
        number = self._numbers["upload"] = self._numbers["upload"] + 1
        template = self._templates[number % len(self._templates)]
        if number % self._options.clip_every == 0:
            template = clip_upload(number, 0)
        return template.model_copy(
            update={
                "video_id": f"soak-{self._options.seed}-{number}",
                "event_id": f"soak-upload-{number}",
                "event_time_ms": self.event_time_ms(),
            }
        )

    def surplus(self) -> str | None:
        """Return the oldest of our videos if there are too many and it could be recommended; it is live no more."""
        if len(self.live) <= self._options.live_videos_max:
            return None
        return self.live.popleft() if self.live[0] in self._seen.servable else None

    def watch(self, *, sound: bool = True) -> tuple[WatchEvent, bool]:
        """Return the next watch, and whether it is the one before once more; one that is not sound never is."""
        number = self._numbers["watch"] = self._numbers["watch"] + 1
        if sound and self._before is not None and number % self._options.duplicate_every == 0:
            return self._before, True
        rng = self._rng
        shown = self.shown.popleft() if self.shown and rng.random() < CLICKED_SHARE else None
        watched_s = round(DURATION_S * rng.random(), 1)
        if shown is None:
            ours = bool(self.live) and rng.random() < NEW_SHARE
            video_id = rng.choice(self.live) if ours else self._old_video()
        watch = WatchEvent(
            event_id=f"soak-watch-{number}",
            event_time_ms=self.event_time_ms(),
            user_id=shown.user_id if shown else user_id(rng.randrange(self._options.users)),
            video_id=shown.video_id if shown else video_id,
            surface=shown.surface if shown else "home",
            watched_s=watched_s,
            duration_s=DURATION_S,
            liked=watched_s > 0.8 * DURATION_S,
            request_id=shown.request_id if shown else None,
            arm=shown.arm if shown else None,
        )
        self._before = watch if sound else None
        return watch, False

    def _old_video(self) -> str:
        return self.past[
            int(len(self.past) * self._rng.random() ** 3)
        ]  # some are watched much more


def user_id(number: int) -> str:
    """Return a viewer's id."""
    return f"soak-viewer-{number}"


def broken(event: VideoUploaded | WatchEvent, number: int) -> tuple[bytes, str]:
    """Return an event as nobody can read it, and the reason for which it will be refused."""
    reason = list(BAD)[number % len(BAD)]
    return BAD[reason](json.loads(to_json(event))), reason


class Sender:
    """A thread that sends at fixed rates until it is told to stop; late ones are made up for."""

    def __init__(
        self, settings: KafkaSettings, options: SoakOptions, stream: Stream, sent: Sent
    ) -> None:
        self._settings, self._options, self._stream, self._sent = settings, options, stream, sent
        self._producer: Producer = producer(settings)
        self._stopping = threading.Event()
        self._thread = KeptThread(self._send_until_stopped, name="sender")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def halt(self) -> None:
        """Send no more."""
        self._stopping.set()
        self._thread.join()

    def stop(self) -> None:
        """Send no more, and return when all is acknowledged, or was given up."""
        self.halt()
        if left := self._producer.flush(FLUSH_S):
            self._sent.failures.append(f"{left} records are not acknowledged after {FLUSH_S} s")

    def check(self) -> None:
        """Raise what ended the thread."""
        self._thread.check()

    def _send_until_stopped(self) -> None:
        started_s = time.monotonic()
        uploads = watches = 0
        while not self._stopping.is_set():
            elapsed_s = time.monotonic() - started_s
            while uploads < elapsed_s * self._options.uploads_per_s:
                uploads += 1
                self._send_upload(uploads)
            while watches < elapsed_s * self._options.watches_per_s:
                watches += 1
                self._send_watch(watches)
            self._producer.poll(TICK_S)
            self._stopping.wait(TICK_S)

    def _send_upload(self, number: int) -> None:
        upload, sent = self._stream.upload(), self._sent
        if number % self._options.bad_every == 0:
            value, reason = broken(upload, number // self._options.bad_every)
            self._send(UPLOADS, upload.video_id, value, partial(_note, sent.bad_uploads, reason))
            return
        note = partial(_note, sent.uploads, upload.video_id)
        self._stream.live.append(upload.video_id)
        self._send(UPLOADS, upload.video_id, to_json(upload), note)
        if (video_id := self._stream.surplus()) is not None:
            removed = VideoRemoved(event_time_ms=self._stream.event_time_ms(), video_id=video_id)
            note = partial(_note, sent.removals, video_id)
            self._send(UPLOADS, video_id, to_json(removed), note)

    def _send_watch(self, number: int) -> None:
        sent = self._sent
        sound = number % self._options.bad_every > 0
        watch, again = self._stream.watch(sound=sound)
        if not sound:
            value, reason = broken(watch, number // self._options.bad_every)
            self._send(WATCHES, watch.user_id, value, partial(_note, sent.bad_watches, reason))
            return
        places = sent.duplicates if again else sent.watches
        self._send(WATCHES, watch.user_id, to_json(watch), places.add)

    def _send(self, topic: Topic, key: str, value: bytes, note: Callable[[Place], None]) -> None:
        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._sent.failures.append(f"{topic.name}: {error}")
            else:
                note((message.partition() or 0, message.offset() or 0))

        name = topic.in_cluster(self._settings)
        while True:
            try:
                self._producer.produce(name, value, key.encode(), on_delivery=on_delivery)
            except BufferError:
                self._producer.poll(TICK_S)
            else:
                return


def _note(places: dict[Place, str], value: str, place: Place) -> None:
    places[place] = value

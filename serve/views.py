"""What a replica knows, as views of topics: the live videos, the viewers' histories, and what time it is in the stream.

Each view is fed batches of records by one thread and read by many; it settles to one state however often the records
are read. Knows nothing of Kafka clients, models and HTTP.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from infra import metrics
from infra.clock import now_ms
from infra.errors import DecodeError
from infra.log import get_logger
from models.prompts import ViewerLike, WatchLike
from models.semantic_id import SemanticIdSpace
from models.trie import LiveTrie, warm
from serve.follower import Record, refuse
from streams.catalogue import Catalogue, CatalogueChange
from streams.events import SemanticIdAssigned, UserErased
from streams.history import History, decode_history
from streams.topics import HISTORIES
from streams.watches import accepted_watch

MAX_POPULAR, MIN_POPULAR = 2_000, 100
HAD_ENOUGH_MAX = 2_000
POPULAR_FOR_S = 5.0

log = get_logger()
OnLive = Callable[[SemanticIdAssigned], None]
OnChange = Callable[[CatalogueChange, Record], None]
OnFollowed = Callable[[str, str], None]


class EventClock:
    """The newest event time seen: "now" for the ages of videos, also while an old stream is replayed."""

    def __init__(self, *, slack_s: float = 86_400.0) -> None:
        """Start before any event; a time further than `slack_s` in the future is a wrong clock and is passed over."""
        self._slack_ms = round(slack_s * 1000)
        self._newest_ms = 0
        self._writing = threading.Lock()

    def advance(self, event_time_ms: int) -> None:
        """Take in an event's time; the clock never goes back."""
        with self._writing:
            if self._newest_ms < event_time_ms <= now_ms() + self._slack_ms:
                self._newest_ms = event_time_ms

    def now_ms(self) -> int:
        """Return the newest event time, or the wall clock before there was any, or where that one is ahead of it."""
        return min(self._newest_ms, now_ms()) if self._newest_ms else now_ms()


class CatalogueView:
    """The live videos of one codebook_version: what is known of each, and the trie that searches walk.

    A removed video leaves the catalogue first, then the trie: whoever finds it in neither or only in the trie must not
    show it.
    """

    def __init__(
        self,
        space: SemanticIdSpace,
        clock: EventClock,
        *,
        on_live: OnLive = lambda video: None,
        on_change: OnChange = lambda change, record: None,
    ) -> None:
        """Start empty.

        Args:
            space: of the current codebook.
            clock: is advanced by upload times.
            on_live: called for each video right after the trie took it, again when it changed.
            on_change: called for each record that changed something, before the trie takes it.
        """
        warm()
        self.catalogue = Catalogue(space.codebook_version)
        self.trie = LiveTrie(space)
        self.changes = 0
        """How often a video came, changed or went: the same number, the same catalogue."""
        self._clock, self._on_live, self._on_change = clock, on_live, on_change

    def take(self, records: Sequence[Record]) -> None:
        """Take in a batch of `video.semantic_ids`; the trie is written once."""
        changed: dict[str, SemanticIdAssigned | None] = {}
        for record in records:
            try:
                change = self.catalogue.apply(record.key, record.value)
            except DecodeError as error:
                refuse(record, error)
                continue
            if change is not None:
                self._on_change(change, record)
                changed[change.video_id] = change.current
                if change.current is not None:
                    self._clock.advance(change.current.upload_time_ms)
        if changed:
            self.changes += len(changed)
            self._write_trie(changed)
            metrics.LIVE_VIDEOS.set(len(self.trie.view))
            if (failure := self.trie.merge_failure) is not None:
                log.error("trie_not_merged", error=str(failure))

    def _write_trie(self, changed: dict[str, SemanticIdAssigned | None]) -> None:
        for video_id, current in changed.items():
            if current is None:
                self.trie.remove(video_id)
        present = [current for current in changed.values() if current is not None]
        try:
            self._insert(present)
        except ValueError:
            present = [video for video in present if self._inserted(video)]
        for video in present:
            self._on_live(video)

    def _insert(self, videos: Sequence[SemanticIdAssigned]) -> None:
        self.trie.insert_many(
            [video.semantic_id for video in videos],
            [video.video_id for video in videos],
            [video.upload_time_ms for video in videos],
            channels=[video.channel for video in videos],
            languages=[video.language for video in videos],
        )

    def _inserted(self, video: SemanticIdAssigned) -> bool:
        """Insert one video; one whose semantic ID is taken, or lies outside the space, is out of the trie."""
        try:
            self._insert([video])
        except ValueError as error:
            self.trie.remove(video.video_id)
            log.error("video_not_servable", video_id=video.video_id, error=str(error))
            return False
        return True


@dataclass(frozen=True)
class KnownViewer:
    """What is known of somebody at one moment."""

    features: ViewerLike | None = None
    watches: Sequence[WatchLike] = ()


class HistoryView:
    """The viewers' histories: `user.histories`, overlaid with the watches that no shard holds yet; and what is popular.

    A history that was sealed and the same watches read from `watch.events` are joined by video and second, so it does
    not matter which comes first, nor that most come twice.
    """

    def __init__(
        self,
        clock: EventClock,
        *,
        length: int = 100,
        future_slack_s: float = 86_400.0,
        enough_views: int = 10,
        on_followed: OnFollowed = lambda before, after: None,
    ) -> None:
        """Start empty.

        Args:
            clock: is advanced by watches.
            length: of a history, and `future_slack_s`: the sealer's, so that both agree on what a history is.
            future_slack_s: further in the future no watch is accepted.
            enough_views: after which a video finds its viewers without help, see `had_enough`.
            on_followed: called with two videos that a viewer watched one after the other, as far as the times tell.
        """
        self._clock, self._length, self._on_followed = clock, length, on_followed
        self._future_slack_ms = round(future_slack_s * 1000)
        self._lock = threading.Lock()
        self._by_user: dict[str, History] = {}
        self._views: Counter[str] = Counter()
        self._enough_views, self._had_enough = enough_views, deque[str](maxlen=HAD_ENOUGH_MAX)
        self._most_watched = _MostWatched()

    def __len__(self) -> int:
        return len(self._by_user)

    def of(self, user_id: str) -> KnownViewer:
        """Return what is known of a viewer now; nothing of an unknown one."""
        with self._lock:
            history = self._by_user.get(user_id)
            if history is None:
                return KnownViewer()
            return KnownViewer(history.user, tuple(history.entries))

    def most_watched(self) -> Sequence[str]:
        """Return the most watched videos, as far as the histories tell, removed ones included; seconds old."""
        if not self._most_watched.begin_count():
            return self._most_watched.ids
        with self._lock:
            counted = list(self._views.items())
        return self._most_watched.count(counted)  # others need not wait for the sort

    def had_enough(self) -> Sequence[str]:
        """Return the newest `HAD_ENOUGH_MAX` videos to reach `enough_views`, as far as the histories tell."""
        with self._lock:
            return tuple(self._had_enough)

    def _count(self, video_ids: Iterable[str]) -> None:
        """Count views; call it with the lock."""
        for video_id in video_ids:
            self._views[video_id] += 1
            if self._views[video_id] == self._enough_views:
                self._had_enough.append(video_id)

    def take(self, records: Sequence[Record]) -> None:
        """Take in a batch of `user.histories` and `watch.events`."""
        for record in records:
            try:
                if record.topic is HISTORIES:
                    self._take_history(record)
                else:
                    self._take_watch(record)
            except DecodeError as error:
                refuse(record, error)

    def _take_history(self, record: Record) -> None:
        if record.value is None:
            with self._lock:
                self._by_user.pop((record.key or b"").decode(errors="replace"), None)
            return
        try:
            user_id, sealed = decode_history(record.value)
        except msgspec.DecodeError as error:
            raise DecodeError(str(error), "invalid_event") from error
        with self._lock:
            held = self._by_user.get(user_id)
            if held is None:
                self._by_user[user_id], unseen = sealed, sealed.entries
            else:
                unseen = held.join(sealed.entries, length=self._length)
                # What was forgotten again at once had been counted when it was watched.
                oldest_ms = held.entries[0].event_time_ms if held.entries else 0
                unseen = [entry for entry in unseen if entry.event_time_ms >= oldest_ms]
                held.user = held.user or sealed.user
            self._count(entry.video_id for entry in unseen)
        if held is None:
            for before, after in pairwise(unseen):
                self._on_followed(before.video_id, after.video_id)
        if unseen:
            self._clock.advance(max(entry.event_time_ms for entry in unseen))

    def _take_watch(self, record: Record) -> None:
        # What the sealer refuses must not be here either, or a history would hold what it never holds there.
        watch = accepted_watch(
            record.key, record.value, record.append_time_ms, future_slack_ms=self._future_slack_ms
        )
        if isinstance(watch, UserErased):
            with self._lock:
                self._by_user.pop(watch.user_id, None)
            return
        with self._lock:
            history = self._by_user.setdefault(watch.user_id, History())
            added = history.add(watch, length=self._length)
            if added:
                self._count([watch.video_id])
            last_two = [entry.video_id for entry in history.entries[-2:]]
        if added and len(last_two) == 2 and last_two[1] == watch.video_id:
            self._on_followed(last_two[0], last_two[1])
        self._clock.advance(watch.event_time_ms)


class _MostWatched:
    """The most watched videos, counted out anew at most every few seconds: under load every answer may want them."""

    def __init__(self) -> None:
        self.ids: Sequence[str] = ()
        self._until_s = 0.0
        self._lock = threading.Lock()

    def begin_count(self) -> bool:
        """Return whether it is time to count, and for this caller to do so."""
        with self._lock:
            is_due = time.monotonic() >= self._until_s
            if is_due:
                self._until_s = time.monotonic() + (POPULAR_FOR_S if self.ids else 0.0)
            return is_due

    def count(self, views: Sequence[tuple[str, int]]) -> Sequence[str]:
        """Return ids, the most watched first; ties go to the smaller id."""
        best = heapq.nsmallest(MAX_POPULAR, views, key=lambda item: (-item[1], item[0]))
        self.ids = tuple(video_id for video_id, _ in best)
        with self._lock:
            if len(self.ids) >= MIN_POPULAR:
                self._until_s = time.monotonic() + POPULAR_FOR_S
            else:
                self._until_s = (
                    0.0  # a young catalogue, quickly counted, of which each watch says much
                )
        return self.ids

"""One replica, put together: views that follow the topics, a model slot, a recommender; knows nothing of Ray and HTTP.

thread       follows                              feeds
catalogue    video.semantic_ids                   the trie, and what is known of each video
histories    user.histories, watch.events         the viewers' histories
checkpoints  model.checkpoints                    the model slot, which loads in this thread
reports      a queue                              serving.impressions, serving.swaps, video.servable
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from prometheus_client import generate_latest
from transformers.utils.logging import disable_progress_bar

from infra import metrics
from infra.clock import now_ms
from infra.errors import DecodeError, FreshetError
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import current_manifest
from models.semantic_id import format_semantic_id
from serve.follower import Follower, Offsets, Record, read_events, refuse
from serve.giving_way import give_way, share_the_lock
from serve.model_slot import ModelSlot
from serve.recommender import Recommender
from serve.reports import Reports
from serve.schemas import (
    RecommendationRequest,
    RecommendationResponse,
    ReplicaStatus,
    VideoState,
)
from serve.views import CatalogueView, EventClock, HistoryView
from streams.codec import decode
from streams.events import (
    LRM_MODEL_NAME,
    CheckpointPromoted,
    ImpressionsShown,
    SemanticIdAssigned,
    ShardSealed,
    VideoServable,
)
from streams.topics import (
    CHECKPOINTS,
    HISTORIES,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SERVABLE,
    SHARDS,
    SWAPS,
    WATCHES,
)

ROUTE = "/v1/recommendations"


class ServableReports:
    """Says once per video and replica that the video can be recommended from now on.

    A replica that starts stays silent about what some replica has said before, and so about everything at an ordinary
    start; what was uploaded while no replica ran is said then, so that an outage shows in the delays. Nobody waits for
    videos of the bootstrap (upload_position below 0), and of those older than the topic's retention nobody can tell.
    """

    def __init__(self, reports: Reports, *, replica: str) -> None:
        self._reports, self._replica = reports, replica
        self._said: set[tuple[str, int]] = set()

    def restore(self, settings: Settings) -> Offsets:
        """Read what has been said; return no offsets, so that the catalogue is read from its beginning."""
        for said in read_events(settings.kafka, SERVABLE, VideoServable):
            self._said.add((said.video_id, said.codebook_version))
        return {}

    def live(self, video: SemanticIdAssigned) -> None:
        """Hear that the trie has taken a video."""
        at, now = (video.video_id, video.codebook_version), now_ms()
        too_old = now - video.upload_append_time_ms > SERVABLE.retention_ms
        if at in self._said or video.upload_position < 0 or too_old:
            return
        self._said.add(at)
        servable = VideoServable(
            video_id=video.video_id,
            codebook_version=video.codebook_version,
            semantic_id=video.semantic_id,
            replica=self._replica,
            servable_time_ms=now,
            upload_append_time_ms=video.upload_append_time_ms,
        )
        self._reports.add(SERVABLE, video.video_id, servable)
        delay_s = (now - video.upload_append_time_ms) / 1000
        metrics.STAGE_DELAY.labels(stage="upload_to_servable").observe(delay_s)
        metrics.LAST_SUCCESS.labels(stage="upload_to_servable").set_to_current_time()


class Replica:
    """Answers requests while its threads keep it up to date."""

    def __init__(self, settings: Settings, *, name: str) -> None:
        """Start the threads and return at once; `status().ready` says when the answers are what they should be.

        Raises:
            ConfigError: no codebook was published yet.
        """
        torch.set_num_threads(settings.serve.threads)
        share_the_lock()
        disable_progress_bar()
        self._settings, self._name = settings, name
        store = ObjectStore(settings.storage.root)
        self._reports = Reports(settings.kafka)
        servable = ServableReports(self._reports, replica=name)
        self._clock = EventClock(slack_s=settings.watches.future_slack_s)
        self._catalogue = CatalogueView(
            current_manifest(store).space, self._clock, on_live=servable.live
        )
        self._histories = HistoryView(
            self._clock,
            length=settings.watches.history_length,
            future_slack_s=settings.watches.future_slack_s,
        )
        self._models = ModelSlot(
            store,
            self._catalogue,
            replica=name,
            cache=settings.var_dir / "cache",
            beam_width=settings.serve.beam_width,
        )
        self._recommender = Recommender(
            self._catalogue,
            self._histories,
            self._models,
            self._clock,
            beam_width=settings.serve.beam_width,
            searches_at_once=settings.serve.threads,
            new_video_age_h=settings.freshness.new_video_age_h,
            on_shown=self._shown,
        )
        self._followers = self._follow(servable)

    def _follow(self, servable: ServableReports) -> dict[str, Follower]:
        kafka, interval_s = self._settings.kafka, self._settings.serve.refresh_interval_s
        return {
            "catalogue": Follower(
                "catalogue",
                kafka,
                [SEMANTIC_IDS],
                self._catalogue.take,
                interval_s=interval_s,
                prepare=lambda: servable.restore(self._settings),
            ),
            "histories": Follower(
                "histories",
                kafka,
                [HISTORIES, WATCHES],
                self._histories.take,
                interval_s=interval_s,
                prepare=lambda: _sealed_until(self._settings),
            ),
            "checkpoints": Follower(
                "checkpoints",
                kafka,
                [CHECKPOINTS],
                self._take_pointers,
                interval_s=interval_s,
                prepare=_from_the_beginning,
            ),
        }

    def _take_pointers(self, records: Sequence[Record]) -> None:
        pointers = []
        for record in records:
            if record.key != LRM_MODEL_NAME.encode() or record.value is None:
                continue
            try:
                pointers.append(decode(CheckpointPromoted, record.value))
            except DecodeError as error:
                refuse(record, error)
        for report in self._models.follow(pointers):
            self._reports.add(SWAPS, self._name, report)

    def _shown(self, shown: ImpressionsShown) -> None:
        if self._settings.serve.log_impressions:
            self._reports.add(IMPRESSIONS, shown.user_id, shown)

    def catch_up(self, *, timeout_s: float) -> bool:
        """Wait until all that was in the topics has been taken, the current model too; return False if time ran out."""
        ends = time.monotonic() + timeout_s
        return all(
            follower.caught_up.wait(max(0.0, ends - time.monotonic()))
            for follower in self._followers.values()
        )

    def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        """Answer a request; counted and timed."""
        started, status = time.monotonic(), "failed"
        try:
            response = self._recommender.recommend(request)
            status = "answered"
        finally:
            metrics.REQUESTS.labels(route=ROUTE, status=status).inc()
            metrics.REQUEST_SECONDS.labels(route=ROUTE).observe(time.monotonic() - started)
        return response

    def video(self, video_id: str) -> VideoState:
        """Return how far a video has come here."""
        known = self._catalogue.catalogue.get(video_id)
        servable = self._catalogue.trie.semantic_id_of(video_id) is not None
        if known is None:
            return VideoState(video_id=video_id, assigned=False, servable=servable)
        return VideoState(
            video_id=video_id,
            assigned=True,
            servable=servable,
            semantic_id=format_semantic_id(known.semantic_id),
            title=known.title,
            upload_time_ms=known.upload_time_ms,
            assigned_time_ms=known.assigned_time_ms,
        )

    def status(self) -> ReplicaStatus:
        """Return what this replica holds now."""
        current, previous = self._models.current, self._models.previous
        done = {"model": current is not None} | {
            name: self._followers[name].caught_up.is_set() for name in ("catalogue", "histories")
        }
        waiting_for = tuple(name for name, is_done in done.items() if not is_done)
        return ReplicaStatus(
            replica=self._name,
            ready=not waiting_for,
            waiting_for=waiting_for,
            live_videos=len(self._catalogue.trie.view),
            histories=len(self._histories),
            model_version=current.model_version if current else 0,
            previous_version=previous.model_version if previous else 0,
            codebook_version=self._catalogue.catalogue.codebook_version,
            swaps=self._models.swaps,
            rejected_swaps=self._models.rejected_swaps,
            event_time_ms=self._clock.now_ms(),
        )

    def metrics(self) -> str:
        """Return this process's metrics as Prometheus reads them."""
        return generate_latest().decode()

    def check(self) -> None:
        """Do nothing while all threads live.

        Raises:
            FreshetError: one has died of an error it did not expect; this replica must be replaced.
        """
        threads: dict[str, Follower | Reports] = {**self._followers, "reports": self._reports}
        dead = [name for name, thread in threads.items() if not thread.alive]
        if dead:
            raise FreshetError(
                f"replica {self._name} no longer follows {', '.join(dead)}; its log says why"
            )

    def close(self) -> None:
        """Stop the threads and send what they still hold."""
        for follower in self._followers.values():
            follower.close()
        self._reports.close()


def _from_the_beginning() -> Offsets:
    """Return no offsets; from here on, this thread, which loads models, gives way to those that answer requests."""
    give_way()
    return {}


def _sealed_until(settings: Settings) -> Offsets:
    """Return from where `watch.events` has watches that no shard, and so perhaps no history, holds.

    This is read before the histories are: shard and histories commit together, so those can only be further.
    """
    offsets: dict[tuple[str, int], int] = {}
    for shard in read_events(settings.kafka, SHARDS, ShardSealed):
        for sealed in shard.ranges:
            at = (WATCHES.name, sealed.partition)
            offsets[at] = max(offsets.get(at, 0), sealed.last_offset + 1)
    return offsets

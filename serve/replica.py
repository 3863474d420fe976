"""One replica, put together: views that follow the topics, model slots, and who answers; knows nothing of Ray and HTTP.

thread       follows                                 feeds
catalogue    video.semantic_ids                      the trie, and what is known of each video
histories    user.histories, watch.events            the viewers' histories, what is popular, what follows what
checkpoints  model.checkpoints                       the model slots, which load in this thread
traces       video.uploads and their dead letters,   how far each video has come, and when
             video.servable, serving.impressions,
             video.counts
searches     the requests that wait                  their answers
reports      a queue                                 serving.impressions, serving.swaps, video.servable
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from transformers.utils.logging import disable_progress_bar

from infra import metrics
from infra.errors import FreshetError
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import current_manifest
from serve.asking import Asking
from serve.candidates import CandidateRanker
from serve.co_watches import CoWatches
from serve.explaining import Explainer
from serve.exposition import exposed
from serve.follower import Follower, Offsets, Record, events_in, read_events
from serve.giving_way import give_way, share_the_lock
from serve.model_slots import ModelSlots
from serve.neighbours import Neighbours
from serve.recommender import Recommender
from serve.reports import Reports
from serve.schemas import (
    ExplanationRequest,
    ExplanationResponse,
    FreshnessResponse,
    ModelState,
    RankRequest,
    RankResponse,
    RecommendationRequest,
    RecommendationResponse,
    RelatedResponse,
    ReplicaStatus,
    VideoState,
)
from serve.search_queue import SearchQueue
from serve.servable import ServableReports
from serve.trace_view import FOLLOWED, TraceView
from serve.turns import Turns
from serve.video_state import video_state
from serve.views import CatalogueView, EventClock, HistoryView
from streams.catalogue import CatalogueChange
from streams.events import LRM_MODEL_NAME, CheckpointPromoted, ImpressionsShown, ShardSealed
from streams.figures import read_figures
from streams.topics import (
    CHECKPOINTS,
    HISTORIES,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SHARDS,
    SWAPS,
    WATCHES,
)

A = TypeVar("A")


class Replica:
    """Answers requests while its threads keep it up to date."""

    def __init__(self, settings: Settings, *, name: str) -> None:
        """Start the threads and return at once; `status().ready` says when the answers are what they should be.

        Raises:
            ConfigError: no codebook was published yet, or the arms of the experiment are no arms.
        """
        torch.set_num_threads(settings.serve.threads)
        share_the_lock()
        disable_progress_bar()
        self._settings, self._name = settings, name
        store = ObjectStore(settings.storage.root)
        self._reports = Reports(settings.kafka)
        self._servable = ServableReports(self._reports, replica=name)
        self._clock = EventClock(slack_s=settings.watches.future_slack_s)
        self._traces, self._co_watches = TraceView(), CoWatches()
        self._store = store
        self._catalogue = CatalogueView(
            current_manifest(store).space,
            self._clock,
            on_live=self._servable.live,
            on_change=self._changed,
        )
        self._histories = HistoryView(
            self._clock,
            length=settings.watches.history_length,
            future_slack_s=settings.watches.future_slack_s,
            enough_views=settings.freshness.view_threshold,
            on_followed=self._co_watches.add,
        )
        self._models = ModelSlots(
            store,
            self._catalogue,
            replica=name,
            cache=settings.var_dir / "cache",
            beam_width=settings.serve.beam_width,
        )
        self._search = SearchQueue(
            beam_width=settings.serve.beam_width,
            threads=1,
            max_batch=settings.serve.batch_max,
            max_waiting=settings.serve.waiting_max,
        )
        self._build_answers()
        self._followers = self._follow()

    def _build_answers(self) -> None:
        settings = self._settings
        neighbours = self._neighbours = Neighbours(settings)
        asking = Asking(self._histories, self._clock, settings.serve)
        self._recommender = Recommender(
            self._catalogue,
            self._histories,
            self._models,
            self._search,
            neighbours,
            self._clock,
            settings,
            on_shown=self._shown,
        )
        self._ranker = CandidateRanker(
            self._catalogue,
            self._histories,
            self._models,
            self._search,
            asking,
            turns=Turns(
                "rankings", at_once=settings.serve.threads, waiting_max=settings.serve.waiting_max
            ),
        )
        self._explainer = Explainer(
            self._catalogue,
            self._models,
            asking,
            self._co_watches,
            neighbours,
            turns=Turns(
                "explanations",
                at_once=settings.serve.threads,
                waiting_max=settings.serve.waiting_max,
            ),
        )

    def _follow(self) -> dict[str, Follower]:
        kafka, interval_s = self._settings.kafka, self._settings.serve.refresh_interval_s
        return {
            "catalogue": Follower(
                "catalogue",
                kafka,
                [SEMANTIC_IDS],
                self._catalogue.take,
                interval_s=interval_s,
                prepare=lambda: self._servable.restore(self._settings),
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
            "traces": Follower("traces", kafka, FOLLOWED, self._traces.take, interval_s=interval_s),
        }

    def _changed(self, change: CatalogueChange, record: Record) -> None:
        if change.current is None:
            self._traces.removed(change.video_id, record.append_time_ms)
            self._co_watches.remove(change.video_id)
        else:
            self._traces.assigned(change.video_id, record)

    def _shown(self, shown: ImpressionsShown) -> None:
        if self._settings.serve.log_impressions:
            self._reports.add(IMPRESSIONS, shown.user_id, shown)

    def catch_up(self, *, timeout_s: float) -> bool:
        """Wait until all that was in the topics has been taken, the current model too; return False if time ran out."""
        ends = time.monotonic() + timeout_s
        return all(
            follower.caught_up.wait(max(0.0, ends - time.monotonic()))
            for name, follower in self._followers.items()
            if name != "traces"  # a week of impressions, which no answer needs
        )

    def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        """Answer a request for videos."""
        return _counted("/v1/recommendations", lambda: self._recommender.recommend(request))

    def rank(self, request: RankRequest) -> RankResponse:
        """Put candidates in order.

        Raises:
            Overloaded: too many searches wait already.
        """
        return _counted("/v1/rank", lambda: self._ranker.rank(request))

    def explain(self, request: ExplanationRequest) -> ExplanationResponse | None:
        """Say why a video is for a viewer; None for a video that is not live."""
        return _counted("/v1/explanations", lambda: self._explainer.explain(request))

    def related(self, video_id: str, k: int) -> RelatedResponse | None:
        """Say what to watch after a video; None for one that is not live."""
        return _counted("/v1/videos/related", lambda: self._recommender.related(video_id, k))

    def video(self, video_id: str) -> VideoState:
        """Return how far a video has come."""
        known, came = self._catalogue.catalogue.get(video_id), self._traces.of(video_id)
        servable = self._catalogue.trie.semantic_id_of(video_id) is not None
        return video_state(video_id, known, came, servable=servable)

    def freshness(self) -> FreshnessResponse:
        """Return what the freshness worker last wrote."""
        figures = read_figures(self._store)
        return FreshnessResponse(
            written_time_ms=figures.pop("written_time_ms", None), figures=figures
        )

    def _take_pointers(self, records: Sequence[Record]) -> None:
        pointers = events_in(records, CheckpointPromoted)
        for promoted in pointers:
            if promoted.model_name == LRM_MODEL_NAME:
                self._traces.promoted(promoted)
        for report in self._models.follow(pointers):
            self._reports.add(SWAPS, self._name, report)

    def status(self) -> ReplicaStatus:
        """Return what this replica holds now."""
        models = self._models.states()
        lrm = models.get(LRM_MODEL_NAME, ModelState(model_version=0, previous_version=0))
        done = {"model": lrm.model_version > 0} | {
            name: self._followers[name].caught_up.is_set() for name in ("catalogue", "histories")
        }
        waiting_for = tuple(name for name, is_done in done.items() if not is_done)
        return ReplicaStatus(
            replica=self._name,
            ready=not waiting_for,
            waiting_for=waiting_for,
            live_videos=len(self._catalogue.trie),
            histories=len(self._histories),
            model_version=lrm.model_version,
            previous_version=lrm.previous_version,
            models=models,
            codebook_version=self._catalogue.catalogue.codebook_version,
            swaps=self._models.swaps,
            rejected_swaps=self._models.rejected_swaps,
            event_time_ms=self._clock.now_ms(),
        )

    def metrics(self) -> str:
        """Return this process's metrics as Prometheus reads them."""
        return exposed()

    def check(self) -> None:
        """Do nothing while all threads live.

        Raises:
            FreshetError: one has died of an error it did not expect; this replica must be replaced.
        """
        threads: dict[str, Follower | Reports | SearchQueue] = {
            **self._followers, "searches": self._search, "reports": self._reports,
        }  # fmt: skip
        dead = [name for name, thread in threads.items() if not thread.alive]
        if dead:
            raise FreshetError(
                f"replica {self._name} no longer follows {', '.join(dead)}; its log says why"
            )

    def close(self) -> None:
        """Stop the threads and send what they still hold."""
        for follower in self._followers.values():
            follower.stop()
        self._search.close()
        for follower in self._followers.values():
            follower.close(timeout_s=1)
        self._neighbours.close()
        self._reports.close()


def _counted(route: str, answer: Callable[[], A]) -> A:
    started, status = time.monotonic(), "failed"
    try:
        found = answer()
        status = "answered"
    finally:
        metrics.REQUESTS.labels(route=route, status=status).inc()
        metrics.REQUEST_SECONDS.labels(route=route).observe(time.monotonic() - started)
    return found


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

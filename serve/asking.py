"""From what a caller sends to what a model is asked: who asks, with which history, and what may be shown.

An unknown user, or one without a history, is "User: unknown" to the model. A video of the history or a context video
that is not live (just uploaded, or just removed) is left out of the prompt. Knows nothing of HTTP and models.
"""

from __future__ import annotations

from dataclasses import replace

from infra.settings import ServeSettings
from models.prompts import Ask
from models.recommend import Request
from models.trie_filters import Filters
from serve.lanes import FreshLane
from serve.schemas import RecommendationRequest, WhoAsks
from serve.views import EventClock, HistoryView, KnownViewer
from streams.arms import WITH_FRESH_LANE

HOUR_MS = 3_600_000


class Asking:
    """Knows the viewers, as far as the caller does not."""

    def __init__(self, histories: HistoryView, clock: EventClock, settings: ServeSettings) -> None:
        self._histories, self._clock, self._settings = histories, clock, settings

    def viewer(self, who: WhoAsks) -> KnownViewer:
        """Return features and watches: the caller's where it sends them, ours elsewhere."""
        known = self._histories.of(who.user_id) if who.user_id else KnownViewer()
        watches = known.watches if who.history is None else who.history
        return KnownViewer(who.user or known.features, watches)

    def request(self, asked: RecommendationRequest) -> Request:
        """Return what the model is asked; the fresh lane is not in it."""
        viewer = self.viewer(asked)
        excluded = set(asked.exclude.video_ids)
        if asked.exclude.watched:
            excluded.update(watch.video_id for watch in viewer.watches)
        if asked.context_video_id is not None:
            excluded.add(asked.context_video_id)
        filters = Filters(
            uploaded_after_ms=None,
            excluded_video_ids=excluded,
            excluded_channels=asked.exclude.channels,
            languages=asked.languages,
        )
        ask = Ask(asked.surface, asked.context_video_id, asked.query, asked.intent)
        return Request(
            viewer.features, viewer.watches, ask, filters, smoothing=self._settings.smoothing
        )

    def lane(self, asked: RecommendationRequest, arm: str) -> FreshLane | None:
        """Return the request's fresh lane, or its arm's; None for no such thing."""
        if asked.fresh is not None:
            return FreshLane(
                self._since(asked.fresh.max_age_h),
                asked.fresh.min_share,
                smoothing=self._settings.fresh_smoothing,
            )
        if arm in WITH_FRESH_LANE:
            return FreshLane(
                self._since(self._settings.fresh_max_age_h),
                self._settings.fresh_share,
                frozenset(self._histories.had_enough()),
                self._settings.fresh_smoothing,
            )
        return None

    def _since(self, max_age_h: float) -> int:
        return self._clock.now_ms() - round(max_age_h * HOUR_MS)


def within(request: Request, lane: FreshLane) -> Request:
    """Return the same request, of which only what the lane allows may be shown."""
    filters = replace(
        request.filters,
        uploaded_after_ms=lane.uploaded_after_ms,
        excluded_video_ids={*request.filters.excluded_video_ids, *lane.had_enough},
    )
    return replace(request, filters=filters, smoothing=lane.smoothing)

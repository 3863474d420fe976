"""One request: who asks, what may be shown, what the model says; a plain class, knows nothing of Ray and HTTP."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import replace

from models.beam_search import Candidate
from models.prompts import Ask
from models.recommend import Request, recommend
from models.semantic_id import format_semantic_id
from models.trie import TrieView
from models.trie_filters import Filters
from serve.model_bundles import ModelBundle
from serve.model_slots import ModelSlots
from serve.schemas import RecommendationRequest, RecommendationResponse, RecommendedItem
from serve.views import CatalogueView, EventClock, HistoryView, KnownViewer
from streams.events import ImpressionItem, ImpressionsShown

ARM = "lrm"
HOUR_MS = 3_600_000
OnShown = Callable[[ImpressionsShown], None]


class Recommender:
    """Answers from one model and one snapshot of the live videos, taken once; from popularity without a model."""

    def __init__(
        self,
        catalogue: CatalogueView,
        histories: HistoryView,
        models: ModelSlots,
        clock: EventClock,
        *,
        beam_width: int,
        searches_at_once: int,
        new_video_age_h: float,
        on_shown: OnShown = lambda shown: None,
    ) -> None:
        """Answer from these views; `on_shown` hears of each answer and must return at once."""
        self._catalogue, self._histories, self._models = catalogue, histories, models
        self._clock, self._on_shown = clock, on_shown
        self._beam_width, self._new_video_age_s = beam_width, new_video_age_h * 3600
        # More searches than cores would make each slower and none sooner.
        self._searching = threading.Semaphore(searches_at_once)

    def recommend(self, asked: RecommendationRequest) -> RecommendationResponse:
        """Return up to k live videos that the request does not exclude, best first.

        An unknown user, or one without a history, is "User: unknown" to the model. A context video that is not live
        (just uploaded, or just removed) is left out of the prompt.
        """
        bundle, view = self._models.lrm, self._catalogue.trie.view
        request = self._request(asked)
        items = self._modelled(bundle, request, view, asked.k) if bundle else []
        if len(items) < asked.k:
            items += self._popular(request, view, items, asked.k - len(items))
        response = RecommendationResponse(
            request_id=uuid.uuid4().hex,
            arm=ARM,
            model_version=bundle.model_version if bundle else 0,
            codebook_version=view.space.codebook_version,
            items=tuple(items),
        )
        self._on_shown(self._shown(asked, response))
        return response

    def _request(self, asked: RecommendationRequest) -> Request:
        known = self._histories.of(asked.user_id) if asked.user_id else KnownViewer()
        watches = known.watches if asked.history is None else asked.history
        excluded = set(asked.exclude.video_ids)
        if asked.exclude.watched:
            excluded.update(watch.video_id for watch in watches)
        if asked.context_video_id is not None:
            excluded.add(asked.context_video_id)
        oldest_ms = None
        if asked.fresh is not None:
            oldest_ms = self._clock.now_ms() - round(asked.fresh.max_age_h * HOUR_MS)
        return Request(
            viewer=asked.user or known.features,
            watches=watches,
            ask=Ask(asked.surface, asked.context_video_id, asked.query, asked.intent),
            filters=Filters(
                uploaded_after_ms=oldest_ms,
                excluded_video_ids=excluded,
                excluded_channels=asked.exclude.channels,
            ),
        )

    def _modelled(
        self, bundle: ModelBundle, request: Request, view: TrieView, k: int
    ) -> list[RecommendedItem]:
        with self._searching:
            found = recommend(
                bundle.for_surface(request.ask.surface),
                [request],
                view,
                self._catalogue.catalogue.videos,
                top_k=k,
                beam_width=self._beam_width,
            )[0]
        items = (self._item(one.video_id, "lrm", one) for one in found)
        return [item for item in items if item is not None]

    def _popular(
        self, request: Request, view: TrieView, items: list[RecommendedItem], k: int
    ) -> list[RecommendedItem]:
        shown = {item.video_id for item in items}.union(request.filters.excluded_video_ids)
        allowed = view.filtered(replace(request.filters, excluded_video_ids=shown))
        popular = self._histories.popular(k, live=allowed)
        found = (self._item(video_id, "popularity", None) for video_id in popular)
        return [item for item in found if item is not None]

    def _item(
        self, video_id: str, source: str, candidate: Candidate | None
    ) -> RecommendedItem | None:
        """Return what is shown of a video; None for one that was removed while we searched."""
        video = self._catalogue.catalogue.get(video_id)
        if video is None:
            return None
        return RecommendedItem(
            video_id=video_id,
            semantic_id=format_semantic_id(video.semantic_id),
            score=candidate.log_prob if candidate else None,
            title=video.title,
            age_s=max(0, self._clock.now_ms() - video.upload_time_ms) / 1000,
            source=source,
        )

    def _shown(
        self, asked: RecommendationRequest, response: RecommendationResponse
    ) -> ImpressionsShown:
        return ImpressionsShown(
            event_time_ms=self._clock.now_ms(),
            request_id=response.request_id,
            user_id=asked.user_id,
            surface=asked.surface,
            arm=response.arm,
            model_version=response.model_version,
            codebook_version=response.codebook_version,
            items=tuple(
                ImpressionItem(
                    video_id=item.video_id,
                    position=position,
                    source=item.source,
                    age_s=item.age_s,
                    new=item.age_s < self._new_video_age_s,
                )
                for position, item in enumerate(response.items)
            ),
        )

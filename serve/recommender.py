"""One request for videos: which arm answers, what its model says, what fills the rest; knows nothing of Ray and HTTP.

    a table row answers it, by policy ---------------------------------------> table
    arm lrm, lrm_fresh    search the trie, beside others' requests ----------> lrm, fresh_lane
                          too many wait for that: what the table has --------> table
    arm two_tower_...     rank all live videos ------------------------------> two_tower
                          of random_new: new ones at random in some places --> random_new
    places still empty    nearest in content, unless too many wait ----------> neighbours
                          the most watched ----------------------------------> popularity

Whatever the source, nothing is shown that is not live or that the request excludes.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Protocol

from infra import metrics
from infra.errors import Overloaded
from infra.settings import Settings
from models.beam_search import Candidate
from models.lrm import Lrm
from models.prompts import Videos
from models.recommend import Request
from models.semantic_id import format_semantic_id
from models.trie import TrieView
from serve.asking import Asking, within
from serve.lanes import FreshLane, Pick, merged
from serve.model_slots import ModelSlots
from serve.neighbours import Neighbours
from serve.schemas import (
    RecommendationRequest,
    RecommendationResponse,
    RecommendedItem,
    RelatedResponse,
    Source,
)
from serve.table_answers import TableAnswers, routes_to_table
from serve.views import CatalogueView, EventClock, HistoryView
from streams.arms import LRM, MODEL_OF, TWO_TOWER_HASH_RANDOM_NEW, arm_of
from streams.events import LRM_MODEL_NAME, ImpressionItem, ImpressionsShown

DRAWN_FROM_MAX = 10_000
TABLE_ARM = "table"
"""Of answers that no arm gave: the related videos, the same for everybody."""
OnShown = Callable[[ImpressionsShown], None]


class Search(Protocol):
    """Who searches the trie; see `serve.search_queue`."""

    def search(
        self, lrm: Lrm, requests: Sequence[Request], view: TrieView, videos: Videos, *, top_k: int
    ) -> list[list[Candidate]]:
        """Return live videos for each request, best first.

        Raises:
            Overloaded: too many wait already.
        """
        ...


@dataclass
class Answering:
    """One request on its way to an answer.

    Attributes:
        view: the live videos, which follows what is removed; the catalogue is asked once more at the end.
    """

    asked: RecommendationRequest
    arm: str
    request: Request
    lane: FreshLane | None
    view: TrieView
    model_version: int = 0
    overloaded: bool = False

    @cached_property
    def allowed(self) -> TrieView:
        """The live videos that may be shown; not made for an answer out of the table."""
        return self.view.filtered(self.request.filters)


class Recommender:
    """Answers from one model, taken once, and what is live."""

    def __init__(
        self,
        catalogue: CatalogueView,
        histories: HistoryView,
        models: ModelSlots,
        search: Search,
        neighbours: Neighbours,
        clock: EventClock,
        settings: Settings,
        *,
        on_shown: OnShown = lambda shown: None,
    ) -> None:
        """Answer from these views; `on_shown` hears of each answer and must return at once."""
        self._catalogue, self._histories, self._models = catalogue, histories, models
        self._search, self._neighbours, self._clock = search, neighbours, clock
        self._settings, self._on_shown = settings, on_shown
        self._asking = Asking(histories, clock, settings.serve)
        self._table_answers = TableAnswers()
        self._rng = random.Random(settings.seed)

    def recommend(self, asked: RecommendationRequest) -> RecommendationResponse:
        """Return up to k live videos that the request does not exclude, best first."""
        answering = self._begin(asked)
        return self._answer(answering, self._items(answering))

    def _answer(self, answering: Answering, items: list[RecommendedItem]) -> RecommendationResponse:
        """Fill what is left, and say what was shown."""
        asked = answering.asked
        if len(items) < asked.k:
            items += self._shown_of(self._fillers(answering, {item.video_id for item in items}))
        response = RecommendationResponse(
            request_id=uuid.uuid4().hex,
            arm=answering.arm,
            model_version=answering.model_version,
            codebook_version=answering.view.space.codebook_version,
            items=tuple(items),
        )
        self._on_shown(self._shown(asked, response))
        return response

    def related(self, video_id: str, k: int) -> RelatedResponse | None:
        """Return what to watch after a video, from the table where it has a row; None if the video is not live."""
        if self._catalogue.catalogue.get(video_id) is None:
            return None
        asked = RecommendationRequest(surface="watch_next", context_video_id=video_id, k=k)
        request, view = self._asking.request(asked), self._catalogue.trie.view
        answering = Answering(asked, TABLE_ARM, request, None, view)
        response = self._answer(answering, self._from_table(answering))
        return RelatedResponse(
            video_id=video_id,
            model_version=response.model_version,
            codebook_version=response.codebook_version,
            items=response.items,
        )

    def _begin(self, asked: RecommendationRequest) -> Answering:
        arm = arm_of(asked.user_id, self._settings.experiment)
        request, lane = self._asking.request(asked), self._asking.lane(asked, arm)
        if lane is not None and lane.share == 1 and arm != TWO_TOWER_HASH_RANDOM_NEW:
            request, lane = within(request, lane), None
        return Answering(asked, arm, request, lane, self._catalogue.trie.view)

    def _items(self, answering: Answering) -> list[RecommendedItem]:
        """Return what the arm says, or the table in its place."""
        if self._is_for_the_table(answering):
            items = self._from_table(answering)
            if len(items) == answering.asked.k:
                return items
            answering.model_version = 0  # filters left too little of the row
        if MODEL_OF[answering.arm] != LRM_MODEL_NAME:
            return self._shown_of(self._from_two_tower(answering))
        try:
            return self._shown_of(self._from_lrm(answering))
        except Overloaded:
            metrics.DEGRADED.inc()
            answering.overloaded = True
            return self._from_table(answering)

    def _is_for_the_table(self, answering: Answering) -> bool:
        """Return whether the policy has the table answer; never in place of an arm that is not the plain LRM."""
        bundle, policy = self._models.table, self._settings.table.route
        if bundle is None or answering.arm != LRM or answering.lane is not None:
            return False
        return routes_to_table(answering.asked, bundle.table, policy)

    def _from_lrm(self, answering: Answering) -> list[Pick]:
        bundle = self._models.lrm
        if bundle is None:
            return []
        request, lane, k = answering.request, answering.lane, answering.asked.k
        requests = [request]
        if lane is not None:  # it brings the new videos, so the other places need not be spread
            requests = [replace(request, smoothing=0.0), within(request, lane)]
        found = self._search.search(
            bundle.for_surface(answering.asked.surface),
            requests,
            answering.view,
            self._catalogue.catalogue.videos,
            top_k=k,
        )
        if found[0]:
            answering.model_version = bundle.model_version
        main = [Pick(one.video_id, one.log_prob, "lrm") for one in found[0]]
        if lane is None:
            return main
        fresh = [Pick(one.video_id, one.log_prob, "fresh_lane") for one in found[1]]
        return self._merged(answering, main, fresh)

    def _from_two_tower(self, answering: Answering) -> list[Pick]:
        """Rank by the newest watches, or by the video on screen for who has none."""
        bundle = self._models.two_tower(MODEL_OF[answering.arm])
        if bundle is None:
            return []
        answering.model_version = bundle.model_version
        asked, lane = answering.asked, answering.lane
        watched = [watch.video_id for watch in answering.request.watches]
        history = watched or ([asked.context_video_id] if asked.context_video_id else [])
        ranked = bundle.ranked(history)
        main = _first(ranked, answering.allowed, asked.k, "two_tower")
        if lane is None:
            return main
        new = answering.view.filtered(within(answering.request, lane).filters)
        if answering.arm == TWO_TOWER_HASH_RANDOM_NEW:
            return self._merged(answering, main, self._at_random(new, asked.k))
        return self._merged(answering, main, _first(ranked, new, asked.k, "fresh_lane"))

    def _at_random(self, allowed: TrieView, k: int) -> list[Pick]:
        """Return up to k videos that may be shown, each as likely as any other of the first `DRAWN_FROM_MAX`."""
        drawn_from = allowed.some_video_ids(DRAWN_FROM_MAX)
        drawn = self._rng.sample(drawn_from, min(k, len(drawn_from)))
        return [Pick(video_id, None, "random_new") for video_id in drawn]

    def _merged(
        self, answering: Answering, main: Sequence[Pick], fresh: Sequence[Pick]
    ) -> list[Pick]:
        lane, k = answering.lane, answering.asked.k
        assert lane is not None
        videos = self._catalogue.catalogue.videos
        is_new = [
            (video := videos.get(pick.video_id)) is not None
            and video.upload_time_ms >= lane.uploaded_after_ms
            and pick.video_id not in lane.had_enough
            for pick in main
        ]
        return merged(main, fresh, is_new=is_new, k=k, places=lane.places(k))

    def _from_table(self, answering: Answering) -> list[RecommendedItem]:
        bundle, context = self._models.table, answering.asked.context_video_id
        if bundle is None or context is None:
            return []
        items = self._table_answers.items(
            bundle.table,
            context,
            k=answering.asked.k,
            videos=self._catalogue.catalogue.videos,
            filters=answering.request.filters,
            now_ms=self._clock.now_ms(),
        )
        if items:
            answering.model_version = bundle.model_version
        return list(items)

    def _fillers(self, answering: Answering, shown: set[str]) -> list[Pick]:
        """Return picks for the places that are left; `shown` are those that have one."""
        wanted = answering.asked.k - len(shown)
        picks: list[Pick] = []
        for video_id, source in self._filler_ids(answering, wanted):
            if len(picks) == wanted:
                break
            if video_id not in shown and answering.allowed.allows(video_id):
                shown.add(video_id)
                picks.append(Pick(video_id, None, source))
        return picks

    def _filler_ids(self, answering: Answering, wanted: int) -> Iterator[tuple[str, Source]]:
        watches = answering.request.watches
        near = answering.asked.context_video_id or (watches[-1].video_id if watches else None)
        if near is not None and not answering.overloaded:
            version = answering.view.space.codebook_version
            over_asked = 2 * wanted + len(watches)
            for neighbour in self._neighbours.of(near, over_asked, codebook_version=version):
                yield neighbour.video_id, "neighbours"
        for video_id in self._histories.most_watched():
            yield video_id, "popularity"

    def _shown_of(self, picks: Iterable[Pick]) -> list[RecommendedItem]:
        return [item for pick in picks if (item := self._item(pick)) is not None]

    def _item(self, pick: Pick) -> RecommendedItem | None:
        """Return what is shown of a video; None for one that was removed while we searched."""
        video = self._catalogue.catalogue.get(pick.video_id)
        if video is None:
            return None
        return RecommendedItem(
            video_id=pick.video_id,
            semantic_id=format_semantic_id(video.semantic_id),
            score=pick.score,
            title=video.title,
            age_s=max(0, self._clock.now_ms() - video.upload_time_ms) / 1000,
            source=pick.source,
        )

    def _shown(
        self, asked: RecommendationRequest, response: RecommendationResponse
    ) -> ImpressionsShown:
        new_s = self._settings.freshness.new_video_age_h * 3600
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
                    new=item.age_s < new_s,
                )
                for position, item in enumerate(response.items)
            ),
        )


def _first(ranked: Iterable[str], allowed: TrieView, k: int, source: Source) -> list[Pick]:
    """Return the k best that may be shown."""
    may_be_shown = (Pick(one, None, source) for one in ranked if allowed.allows(one))
    return list(islice(may_be_shown, k))

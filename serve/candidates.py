"""Candidates of another system put in order for a viewer: by the ranking adapter, else by the LRM, else by popularity.

Knows nothing of Ray and HTTP.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Literal

from models.prompts import Ask
from models.ranking import rank
from models.recommend import Request
from models.trie import LiveTrie, TrieView
from serve.asking import Asking
from serve.model_bundles import ModelBundle
from serve.model_slots import ModelSlots
from serve.recommender import Search
from serve.schemas import RankedItem, RankRequest, RankResponse
from serve.turns import Turns
from serve.views import CatalogueView, HistoryView
from streams.events import SemanticIdAssigned

ScoredBy = Literal["ranking_adapter", "lrm", "popularity"]


class CandidateRanker:
    """Scores live candidates; those that are not live come last, unscored."""

    def __init__(
        self,
        catalogue: CatalogueView,
        histories: HistoryView,
        models: ModelSlots,
        search: Search,
        asking: Asking,
        *,
        turns: Turns,
    ) -> None:
        self._catalogue, self._histories, self._models = catalogue, histories, models
        self._search, self._asking, self._turns = search, asking, turns

    def rank(self, asked: RankRequest) -> RankResponse:
        """Return all candidates, best first; equals, and those without a score, as they came.

        Raises:
            Overloaded: too many wait already.
        """
        bundle = self._models.lrm
        live = self._live(asked.candidates)
        items = [
            RankedItem(video_id=video_id, live=video_id in live, score=None)
            for video_id in self._as_they_came(asked, by_popularity=bundle is None)
        ]
        scored_by: ScoredBy = "popularity"
        if bundle is not None:
            scored_by = "ranking_adapter" if bundle.ranking else "lrm"
            scored = self._scored(bundle, asked, live) if live else {}
            items = [scored.get(item.video_id, item) for item in items]
        still_live = self._live(live)  # some may have been removed while others were scored
        items = [
            item
            if item.video_id in still_live
            else RankedItem(video_id=item.video_id, live=False, score=None)
            for item in items
        ]
        items.sort(key=lambda item: (not item.live, item.score is None, -(item.score or 0)))
        return RankResponse(
            model_version=bundle.model_version if bundle else 0,
            codebook_version=self._catalogue.catalogue.codebook_version,
            scored_by=scored_by,
            items=tuple(items),
        )

    def _live(self, video_ids: Iterable[str]) -> dict[str, SemanticIdAssigned]:
        """Return those of some videos that are live now, each under the semantic ID that the trie has for it."""
        return {
            video_id: video
            for video_id in video_ids
            if (video := self._catalogue.catalogue.get(video_id)) is not None
            and self._catalogue.trie.semantic_id_of(video_id) == video.semantic_id
        }

    def _as_they_came(self, asked: RankRequest, *, by_popularity: bool) -> list[str]:
        ids = list(dict.fromkeys(asked.candidates))
        if not by_popularity:
            return ids
        place = {video_id: at for at, video_id in enumerate(self._histories.most_watched())}
        return sorted(ids, key=lambda video_id: place.get(video_id, len(place)))

    def _scored(
        self, bundle: ModelBundle, asked: RankRequest, live: Mapping[str, SemanticIdAssigned]
    ) -> dict[str, RankedItem]:
        viewer = self._asking.viewer(asked)
        request = Request(viewer.features, viewer.watches, Ask(asked.surface))
        if bundle.ranking is not None:
            with self._turns.taken():
                known = ChainMap(dict(live), self._catalogue.catalogue.videos)
                (ratings,) = rank(bundle.ranking, [request], [list(live)], known)
            return {
                video_id: RankedItem(
                    video_id=video_id,
                    live=True,
                    score=rating.share,
                    watched_share=rating.share,
                    like_probability=rating.liked,
                )
                for video_id, rating in zip(live, ratings, strict=True)
            }
        # With as many beams as there are candidates the search is exhaustive among them.
        (found,) = self._search.search(
            bundle.for_surface(asked.surface),
            [request],
            _trie_of(self._catalogue, live),
            self._catalogue.catalogue.videos,
            top_k=len(live),
        )
        return {
            one.video_id: RankedItem(video_id=one.video_id, live=True, score=one.log_prob)
            for one in found
        }


def _trie_of(catalogue: CatalogueView, live: Mapping[str, SemanticIdAssigned]) -> TrieView:
    """Return the trie of some live videos."""
    trie = LiveTrie(catalogue.trie.view.space)
    trie.insert_many(
        [video.semantic_id for video in live.values()],
        list(live),
        [video.upload_time_ms for video in live.values()],
    )
    return trie.view

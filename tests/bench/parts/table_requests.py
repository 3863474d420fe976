"""Answers by lookup and by search, from request bytes to response bytes, and what each costs.

Knows nothing of how the table and the LRM came about.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from infra.settings import TableRoute
from models.lrm import Lrm
from models.offline_table import OfflineTable
from models.prompts import Ask
from models.recommend import Request, recommend
from models.semantic_id import format_semantic_id
from models.trie import TrieView
from models.trie_filters import Filters
from serve.schemas import RecommendationRequest, RecommendationResponse, RecommendedItem
from serve.table_answers import TableAnswers, routes_to_table
from streams.events import SemanticIdAssigned

BEAM_WIDTH = 20
REPEATS = 5


@dataclass(frozen=True)
class Served:
    """What a replica has at hand."""

    lrm: Lrm
    table: OfflineTable
    view: TrieView
    videos: Mapping[str, SemanticIdAssigned]
    now_ms: int
    answers: TableAnswers

    def by_table(self, body: bytes) -> bytes:
        """Return the answer to a request whose context video has a row."""
        asked = RecommendationRequest.model_validate_json(body)
        assert asked.context_video_id is not None
        excluded = {asked.context_video_id, *asked.exclude.video_ids}  # as the recommender does
        items = self.answers.items(
            self.table,
            asked.context_video_id,
            k=asked.k,
            videos=self.videos,
            filters=Filters(excluded_video_ids=excluded),
            now_ms=self.now_ms,
        )
        return self._response(items)

    def by_search(self, body: bytes) -> bytes:
        """Return the LRM's own answer."""
        asked = RecommendationRequest.model_validate_json(body)
        request = Request(
            asked.user, asked.history or (), Ask(asked.surface, asked.context_video_id)
        )
        found = recommend(
            self.lrm, [request], self.view, self.videos, top_k=asked.k, beam_width=BEAM_WIDTH
        )[0]
        items = [
            RecommendedItem(
                video_id=one.video_id,
                semantic_id=format_semantic_id(one.semantic_id),
                score=one.log_prob,
                title=self.videos[one.video_id].title,
                age_s=max(0, self.now_ms - self.videos[one.video_id].upload_time_ms) / 1000,
                source="lrm",
            )
            for one in found
        ]
        return self._response(tuple(items))

    def by_policy(self, body: bytes, policy: Sequence[TableRoute]) -> bytes:
        """Return the answer that the policy asks for."""
        asked = RecommendationRequest.model_validate_json(body)
        by_table = routes_to_table(asked, self.table, policy)
        return self.by_table(body) if by_table else self.by_search(body)

    def _response(self, items: tuple[RecommendedItem, ...]) -> bytes:
        return (
            RecommendationResponse(
                request_id=uuid.uuid4().hex,
                arm="lrm",
                model_version=1,
                codebook_version=self.view.space.codebook_version,
                items=items,
            )
            .model_dump_json()
            .encode()
        )


def cpu_s_per_1000(answer: Callable[[bytes], bytes], bodies: Sequence[bytes]) -> float:
    """Return the CPU-seconds of this process for a thousand answers: the least of some repeats, all requests each.

    The least, as other processes on the machine can only add to it.
    """
    answer(bodies[0])
    found = []
    for _ in range(REPEATS):
        started = time.process_time()
        for body in bodies:
            answer(body)
        found.append(time.process_time() - started)
    return 1000 * min(found) / len(bodies)

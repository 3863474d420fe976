"""Answers out of the offline table: which requests it may answer, and the items, without any model.

Knows nothing of how the table came here, and what is done where it has no answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import Final, NamedTuple

from infra.settings import TableRoute
from models.offline_table import OfflineTable
from models.semantic_id import format_semantic_id
from models.trie_filters import NO_FILTERS, Filters
from serve.schemas import RecommendationRequest, RecommendedItem
from streams.events import SemanticIdAssigned

SOURCE: Final = "table"
PIECES_MAX = 200_000
"""Videos whose part of an item is kept: some 200 bytes each."""


def routes_to_table(
    asked: RecommendationRequest, table: OfflineTable | None, policy: Collection[TableRoute]
) -> bool:
    """Return whether the policy has the table answer a request, so that the model need not.

    Never where the request says what the table cannot heed: a query, an intent, a history, how young the videos must
    be; nor where its context video has no row, or one with fewer than k videos.

    - `no_user`: nobody is named, and nothing is said of the viewer.
    - `watch_next_head`: the surface is watch_next, whoever asks: what is known of them is not used.
    """
    context = asked.context_video_id
    if table is None or context is None or not policy:
        return False
    if asked.query or asked.intent or asked.history or asked.fresh is not None:
        return False
    if table.num_related(context) < asked.k:
        return False
    is_nobody = asked.user_id is None and asked.user is None
    return (is_nobody and "no_user" in policy) or (
        asked.surface == "watch_next" and "watch_next_head" in policy
    )


class _Piece(NamedTuple):
    """What an item says of a video whenever it is asked, and the catalogue's record that it was made of."""

    video: SemanticIdAssigned
    title: str
    semantic_id: str
    upload_time_ms: int


class TableAnswers:
    """Makes items of rows; what does not change of a video is made once.

    Any number of threads may ask; what one of them overwrites, another has made of the same video.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, _Piece] = {}

    def items(
        self,
        table: OfflineTable,
        context_video_id: str,
        *,
        k: int,
        videos: Mapping[str, SemanticIdAssigned],
        filters: Filters = NO_FILTERS,
        now_ms: int,
    ) -> tuple[RecommendedItem, ...]:
        """Return up to k live videos that go with one, best first; none where it has no row.

        Args:
            table: rows may name videos that were removed since.
            context_video_id: what is on screen, or was asked about; never in the answer.
            k: videos wanted; there are fewer where fewer of the row may be shown.
            videos: the live ones; a removed one is not among them and is left out.
            filters: what the request may be shown, checked here for the few videos of a row: asking a filtered trie
                for each would cost more than all the rest.
            now_ms: the events' clock, by which each video's age is told.
        """
        excluded = filters.excluded_video_ids
        if not isinstance(excluded, Set):
            excluded = frozenset(excluded)
        is_plain = not (filters.excluded_channels or filters.languages)
        is_plain = is_plain and filters.uploaded_after_ms is None
        found: list[RecommendedItem] = []
        pieces = self._pieces
        for video_id, log_prob in table.entries(context_video_id):
            video = videos.get(video_id)
            if video is None or video_id == context_video_id or video_id in excluded:
                continue
            if not (is_plain or _passes(video, filters)):
                continue
            piece = pieces.get(video_id)
            if piece is None or piece.video is not video:  # an edit is another object
                piece = self._make(video)
            _, title, semantic_id, upload_time_ms = piece
            age_s = (now_ms - upload_time_ms) / 1000 if now_ms > upload_time_ms else 0.0
            found.append(RecommendedItem(video_id, semantic_id, log_prob, title, age_s, SOURCE))
            if len(found) == k:
                break
        return tuple(found)

    def _make(self, video: SemanticIdAssigned) -> _Piece:
        piece = _Piece(
            video, video.title, format_semantic_id(video.semantic_id), video.upload_time_ms
        )
        if len(self._pieces) >= PIECES_MAX:
            self._pieces.clear()
        self._pieces[video.video_id] = piece
        return piece


def _passes(video: SemanticIdAssigned, filters: Filters) -> bool:
    """Return whether a video passes the filters, its id apart."""
    after_ms = filters.uploaded_after_ms
    return (
        (after_ms is None or video.upload_time_ms >= after_ms)
        and (not filters.excluded_channels or video.channel not in filters.excluded_channels)
        and (
            not filters.languages or (bool(video.language) and video.language in filters.languages)
        )
    )

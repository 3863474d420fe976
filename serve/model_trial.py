"""What a model must answer before it serves, on the videos that are live now; knows nothing of swaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from infra.errors import VersionMismatchError
from models import ranking
from models.live_retriever import LiveRetriever
from models.lrm import Lrm
from models.prompts import Ask
from models.recommend import Request, recommend
from models.trie import LiveTrie, TrieView
from serve.views import CatalogueView
from streams.history import Entry

PROBE_K = 10


class Trial:
    """Asks as requests do, with the shortest prompt and the longest; this is the warm-up, too."""

    def __init__(self, catalogue: CatalogueView, *, beam_width: int) -> None:
        """Ask about the live videos; `beam_width` as requests search with."""
        self._catalogue, self._beam_width = catalogue, beam_width

    def search(self, lrm: Lrm, surfaces: Sequence[str]) -> None:
        """Do nothing if two searches find what they should, on the first of some surfaces and on the last.

        Raises:
            VersionMismatchError: an answer is not live, not finite, or too short.
        """
        view = self._view()
        some_ids = view.some_video_ids(lrm.history_max)
        wanted = min(PROBE_K, self._beam_width, len(view))
        answers = recommend(
            lrm,
            list(_requests(surfaces, some_ids)),
            view,
            self._catalogue.catalogue.videos,
            top_k=wanted,
            beam_width=self._beam_width,
        )
        for found in answers:
            good = [
                one for one in found if view.allows(one.video_id) and math.isfinite(one.log_prob)
            ]
            removed = len(found) - sum(view.allows(one.video_id) for one in found)
            if len(good) < min(wanted - removed, len(view)):
                raise VersionMismatchError(
                    f"a trial search found {len(good)} live videos with a finite log_prob, expected {wanted}"
                )

    def rate(self, lrm: Lrm) -> None:
        """Do nothing if candidates are rated between 0 and 1; before any video is live there is none to rate.

        Raises:
            VersionMismatchError: a rating is none.
        """
        view, known = self._view(), dict(self._catalogue.catalogue.videos)
        candidates = [one for one in view.some_video_ids(PROBE_K) if one in known]
        requests = list(_requests(["home"], candidates)) if candidates else []
        rated = ranking.rank(lrm, requests, [candidates] * len(requests), known)
        for rating in (one for some in rated for one in some):
            if not (0 <= rating.share <= 1 and 0 <= rating.liked <= 1):
                raise VersionMismatchError(f"a trial rating is {rating}, expected shares of 1")

    def _view(self) -> TrieView:
        view = self._catalogue.trie.view
        return view if len(view) else _one_video(view)


def check_ranking(retriever: LiveRetriever) -> None:
    """Do nothing if a retriever ranks its items, for somebody without a history and for somebody with a long one.

    Raises:
        VersionMismatchError: a vector is not finite, or an answer is too short.
    """
    if not bool(retriever.vectors_ND.isfinite().all()):
        raise VersionMismatchError("a trial ranking met vectors of items that are not finite")
    wanted = min(PROBE_K, len(retriever))
    some_ids = list(retriever.item_ids[: retriever.model.history_max])
    for found in retriever.rank([[], some_ids], top_k=wanted):
        if len(found) != wanted:
            raise VersionMismatchError(
                f"a trial ranking found {len(found)} videos with a finite score, expected {wanted}"
            )


def _requests(surfaces: Sequence[str], some_ids: Sequence[str]) -> Iterator[Request]:
    """Yield the shortest prompt on the first surface and the longest on the last: no more, as others ask meanwhile."""
    watches = [Entry(video_id, 100, 60, 0, "home") for video_id in some_ids]
    yield Request(viewer=None, watches=(), ask=Ask(surfaces[0]))
    yield Request(viewer=None, watches=watches, ask=Ask(surfaces[-1], some_ids[0]))


def _one_video(empty: TrieView) -> TrieView:
    """Return a view of the same space with one video, to try a model before any video is live."""
    trie = LiveTrie(empty.space)
    trie.insert((0,) * empty.space.num_levels, "none", 0)
    return trie.view

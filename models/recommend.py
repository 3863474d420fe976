"""From a request to ranked videos: render, encode, search under the trie; knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.beam_search import Candidate, beam_search
from models.lrm import Lrm
from models.prompts import Ask, Videos, ViewerLike, WatchLike, render_request
from models.trie import TrieView
from models.trie_filters import NO_FILTERS, Filters


@dataclass(frozen=True)
class Request:
    """What is known when a viewer asks.

    Attributes:
        smoothing: share of each code's probability that is even over what may follow; see `models.beam_search`.
    """

    viewer: ViewerLike | None
    watches: Sequence[WatchLike]
    ask: Ask
    filters: Filters = NO_FILTERS
    smoothing: float = 0.0


def recommend(
    lrm: Lrm,
    requests: Sequence[Request],
    view: TrieView | Sequence[TrieView],
    videos: Videos,
    *,
    top_k: int,
    beam_width: int,
) -> list[list[Candidate]]:
    """Return up to `top_k` live videos per request, best first; every one is in its view and passes its filters.

    Requests that differ in views, filters and smoothing alone are one prompt, which is run once.
    """
    views = [view] * len(requests) if isinstance(view, TrieView) else view
    prompts = [
        lrm.encode(
            render_request(
                request.viewer, request.watches, request.ask, videos, history_max=lrm.history_max
            )
        )
        for request in requests
    ]
    return beam_search(
        lrm.model,
        prompts,
        [one.filtered(request.filters) for one, request in zip(views, requests, strict=True)],
        level_token_ids=lrm.level_token_ids,
        beam_width=max(beam_width, top_k),
        top_k=top_k,
        pad_token_id=lrm.pad_token_id,
        smoothing=[request.smoothing for request in requests],
    )

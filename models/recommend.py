"""From a request to ranked videos: render, encode, search under the trie; knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.beam_search import Candidate, beam_search
from models.lrm import Lrm
from models.prompts import Ask, Videos, ViewerLike, WatchLike, render_request
from models.trie import TrieView


@dataclass(frozen=True)
class Request:
    """What is known when a viewer asks."""

    viewer: ViewerLike | None
    watches: Sequence[WatchLike]
    ask: Ask
    excluded_video_ids: Collection[str] = field(default=())
    uploaded_after_ms: int | None = None


def allowed_view(view: TrieView, request: Request) -> TrieView:
    """Return the trie without what the request excludes."""
    keep_N = np.ones(len(view), dtype=bool)
    if request.excluded_video_ids:
        excluded = frozenset(request.excluded_video_ids)
        keep_N &= np.fromiter((one not in excluded for one in view.video_ids_N), bool, len(view))
    if request.uploaded_after_ms is not None:
        keep_N &= view.upload_times_ms_N >= request.uploaded_after_ms
    return view if keep_N.all() else view.restricted(keep_N)


def recommend(
    lrm: Lrm,
    requests: Sequence[Request],
    view: TrieView | Sequence[TrieView],
    videos: Videos,
    *,
    top_k: int,
    beam_width: int,
) -> list[list[Candidate]]:
    """Return up to `top_k` live videos per request, best first; every one is in its view."""
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
        [allowed_view(one, request) for one, request in zip(views, requests, strict=True)],
        level_token_ids=lrm.level_token_ids,
        beam_width=max(beam_width, top_k),
        top_k=top_k,
        pad_token_id=lrm.pad_token_id,
    )

"""Ranking: what share of a video a viewer would watch, and whether they would like it; knows nothing of impressions.

The prompt is the personalised one (`models.prompts`) with the candidate's codes behind it, and a question of its own:

    User: region US | 24 years female | device ANDROID
    Watch history:
    home:<a_228><b_204><c_196><d_0> Taylor Swift 100% 260s
    home:<a_41><b_13><c_5><d_0> rated:+9

The answer is two tokens: `+` for liked or `-`, then the share watched in ninths, so that 0 is nothing and 9 all of it.
Both are single tokens in any byte-level vocabulary, and with the like first both answers' probabilities are exact: over
its two values, the share's expectation is a sum. Context and query are left out of the line, as what was shown and not
watched has none, and nothing but the codes may tell the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from infra.errors import VersionMismatchError
from models.examples import IGNORED, Example
from models.lrm import Lrm
from models.prompts import (
    Ask,
    VideoLike,
    Videos,
    ViewerLike,
    WatchLike,
    render_request,
    render_semantic_id,
)
from models.recommend import Request

QUESTION: Final = " rated:"
LIKED: Final = ("-", "+")
NINTHS: Final = 9
AT_ONCE: Final = 32
HISTORY: Final = 16
"""Watches before a candidate: each candidate has a text of its own, so a long history is paid for each time."""
_ANSWER: Final = re.compile(r"\s*([+-])([0-9])")


class Rating(NamedTuple):
    """How a viewer takes a video: what happened, or what is expected.

    Attributes:
        share: watched, 0 to 1.
        liked: 0 or 1, or a probability.
    """

    share: float
    liked: float


@dataclass(frozen=True)
class Judgement:
    """A viewer's history when a video was before them, and what came of it."""

    viewer: ViewerLike | None
    watches: Sequence[WatchLike]
    surface: str
    video_id: str
    rating: Rating


def render_rating(rating: Rating) -> str:
    """Return the answer: `+9` for what was liked and watched to its end, `-0` for what was left alone."""
    ninths = round(NINTHS * min(max(rating.share, 0.0), 1.0))
    return f"{LIKED[rating.liked >= 0.5]}{ninths}"


def parse_rating(answer: str) -> Rating | None:
    """Return what an answer says; None where it says nothing of the kind."""
    found = _ANSWER.match(answer)
    return Rating(int(found[2]) / NINTHS, float(found[1] == LIKED[True])) if found else None


def render_candidate(video: VideoLike) -> str:
    """Return what follows the prompt of a request, up to where the answer begins."""
    return render_semantic_id(video.semantic_id) + QUESTION


def ranking_examples(lrm: Lrm, judgements: Iterable[Judgement], videos: Videos) -> list[Example]:
    """Return a text per judgement of a known video; loss on the two tokens of the answer only."""
    examples = []
    for one in judgements:
        video = videos.get(one.video_id)
        if video is None:
            continue
        answer = [_token_id(lrm, token) for token in render_rating(one.rating)]
        before = _prompt(lrm, one.viewer, one.watches, one.surface, videos)
        before += lrm.encode(render_candidate(video))
        labels = (*[IGNORED] * len(before), *answer)
        examples.append(Example((*before, *answer), labels))
    return examples


@torch.inference_mode()
def rank(
    lrm: Lrm, requests: Sequence[Request], candidates: Sequence[Sequence[str]], videos: Videos
) -> list[list[Rating]]:
    """Return the expected share watched and the probability of a like of each request's candidates, in their order.

    The prompt of a request is run once for every `AT_ONCE` of its candidates, each of which needs a copy of its cache.

    Args:
        lrm: with its ranking adapter.
        requests: who asks, and on which surface.
        candidates: for each request, ids of known videos.
        videos: all live ones.
    """
    return [
        [
            rating
            for start in range(0, len(some), AT_ONCE)
            for rating in _rated(
                lrm, request, [videos[one] for one in some[start : start + AT_ONCE]], videos
            )
        ]
        for request, some in zip(requests, candidates, strict=True)
    ]


def _rated(
    lrm: Lrm, request: Request, candidates: Sequence[VideoLike], videos: Videos
) -> list[Rating]:
    """Legend: C candidates, 2 for disliked and liked, S tokens behind the prompt, V vocabulary."""
    device = lrm.model.device
    prompt = _prompt(lrm, request.viewer, request.watches, request.ask.surface, videos)
    liked_2 = torch.tensor([_token_id(lrm, token) for token in LIKED], device=device)
    share_10 = torch.tensor([_token_id(lrm, str(one)) for one in range(NINTHS + 1)], device=device)
    questions = [lrm.encode(render_candidate(video)) for video in candidates]
    ids_2CS = torch.tensor(
        [[*question, int(token)] for token in liked_2 for question in questions], device=device
    )
    ran = lrm.model(input_ids=torch.tensor([prompt], device=device), use_cache=True)
    cache = ran.past_key_values
    cache.batch_repeat_interleave(len(ids_2CS))
    logits_2CSV = lrm.model(input_ids=ids_2CS, past_key_values=cache, use_cache=True).logits
    liked_C2 = logits_2CSV[: len(candidates), -2][:, liked_2].double().softmax(dim=-1)
    share_2C = _expected(logits_2CSV[:, -1][:, share_10]).view(2, len(candidates))
    expected_C = (liked_C2 * share_2C.T).sum(dim=-1)
    return [
        Rating(float(share), float(liked))
        for share, liked in zip(expected_C, liked_C2[:, 1], strict=True)
    ]


def _expected(logits_N10: Tensor) -> Tensor:
    """Return the expected share, [N], under the logits of its ten values."""
    values_10 = torch.arange(NINTHS + 1, device=logits_N10.device) / NINTHS
    return (logits_N10.double().softmax(dim=-1) * values_10).sum(dim=-1)


def _prompt(
    lrm: Lrm,
    viewer: ViewerLike | None,
    watches: Sequence[WatchLike],
    surface: str,
    videos: Videos,
) -> list[int]:
    history_max = min(HISTORY, lrm.history_max)
    return lrm.encode(
        render_request(viewer, watches, Ask(surface), videos, history_max=history_max)
    )


def _token_id(lrm: Lrm, token: str) -> int:
    token_id = lrm.tokenizer.token_to_id(token)
    if token_id is None:
        raise VersionMismatchError(
            f"the tokenizer has no token {token!r}, which answers of the ranking adapter are made of: leave ranking "
            "out of FRESHET_TRAINING__ADAPTERS, or choose a base with a byte-level vocabulary"
        )
    return int(token_id)

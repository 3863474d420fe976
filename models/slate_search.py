"""Beam search for several semantic IDs after one another, as one answer; knows nothing of requests, text and swaps.

After its last level a walk begins at the trie's root again, behind the tokens that separate semantic IDs in a text. A
beam does not reach a semantic ID that it has already: a prefix below which all others are excluded is not entered.

Legend: B requests; W beams of a request; X semantic IDs that a beam has; K codes of a level; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from models.beam_search import Candidate, _check, _code_log_probs, _SharedPromptDecoder
from models.trie import TrieView

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Slate:
    """Different videos that the model proposes in this order.

    Attributes:
        candidates: each with its log-prob after those before it.
    """

    candidates: tuple[Candidate, ...]

    @property
    def log_prob(self) -> float:
        """Natural log, summed over the candidates."""
        return sum(one.log_prob for one in self.candidates)


class _Slates(NamedTuple):
    """The beams of one request, of which each holds whole semantic IDs and the prefix of another.

    Attributes:
        keys_WX: the whole ones, packed; sums_WX: the log-prob up to the end of each.
    """

    parents_W: Int64s
    codes_W: Int64s
    prefixes_W: Int64s
    log_probs_W: NDArray[np.float64]
    keys_WX: Int64s
    sums_WX: NDArray[np.float64]


@torch.inference_mode()
def slate_search(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    views: Sequence[TrieView],
    *,
    length: int,
    level_token_ids: Sequence[torch.Tensor],
    separator_token_ids: Sequence[int] = (),
    beam_width: int,
    top_k: int,
    pad_token_id: int,
) -> list[list[Slate]]:
    """Return for each prompt the most probable sequences of `length` different live videos, best first.

    Among equal log-probs the smaller packed key of the last video comes first, then of the one before. The separator's
    tokens are given, not chosen: their log-probs do not count. Where fewer than `length` videos pass, there is no
    slate.

    Raises:
        ValueError: the arguments disagree in number or size, or a prompt is empty.
    """
    _check(prompts, views, level_token_ids, beam_width, top_k)
    if length < 1:
        raise ValueError(f"a slate has a length of {length}, expected 1 or more")
    if not any(views):
        return [[] for _ in views]
    decoder = _SharedPromptDecoder(model, pad_token_id)
    logits_BWV = decoder.prefill(prompts)
    searches = [_root() for _ in prompts]
    for number in range(length):
        for level, token_ids_K in enumerate(level_token_ids):
            if number or level:
                # Before the first level stands the last of the semantic ID before.
                logits_BWV = _appended(decoder, searches, level_token_ids[level - 1])
            if number and level == 0:
                searches = [_restarted(each) for each in searches]
                for token_id in separator_token_ids:
                    logits_BWV = _appended(decoder, searches, torch.tensor([token_id]))
            log_probs_BWK = _code_log_probs(logits_BWV, token_ids_K)
            searches = [
                _extended(each, view, level, log_probs_WK[: len(each.codes_W)], beam_width)
                for each, view, log_probs_WK in zip(searches, views, log_probs_BWK, strict=True)
            ]
            if not any(len(each.codes_W) for each in searches):
                return [[] for _ in views]
    return [_best(each, view, top_k) for each, view in zip(searches, views, strict=True)]


def _appended(
    decoder: _SharedPromptDecoder, searches: Sequence[_Slates], token_ids_K: torch.Tensor
) -> torch.Tensor:
    """Append each beam's newest code behind its parent, and return the logits after it."""
    rows: Any = searches  # of which only the parents and the codes are read
    return decoder.step(rows, token_ids_K)


def _root() -> _Slates:
    nothing = np.zeros(1, np.int64)
    return _Slates(
        nothing, nothing, nothing, np.zeros(1), np.empty((1, 0), np.int64), np.empty((1, 0))
    )


def _restarted(slates: _Slates) -> _Slates:
    """Return the beams at the root again, each behind itself in the cache."""
    width = len(slates.codes_W)
    nothing = np.zeros(width, np.int64)
    return _Slates(np.arange(width), nothing, nothing, slates.log_probs_W, *_completed(slates))


def _completed(slates: _Slates) -> tuple[Int64s, NDArray[np.float64]]:
    """Return the whole semantic IDs and their sums, with the one that the prefixes have become."""
    return (
        np.column_stack([slates.keys_WX, slates.prefixes_W]),
        np.column_stack([slates.sums_WX, slates.log_probs_W]),
    )


def _extended(
    slates: _Slates,
    view: TrieView,
    level: int,
    log_probs_WK: NDArray[np.float32],
    beam_width: int,
) -> _Slates:
    """Return the best allowed continuations of all beams, at most beam_width."""
    best = view.best_children(
        slates.prefixes_W,
        level,
        slates.log_probs_W,
        log_probs_WK,
        count=beam_width,
        repeated_WX=slates.keys_WX,
    )
    return _Slates(
        best.row_C,
        best.code_C,
        best.prefix_C,
        best.log_probs_C,
        slates.keys_WX[best.row_C],
        slates.sums_WX[best.row_C],
    )


def _best(slates: _Slates, view: TrieView, top_k: int) -> list[Slate]:
    """Return the best beams of which every video is live still."""
    order = np.argsort(-slates.log_probs_W, kind="stable")
    keys_WX, sums_WX = (each[order] for each in _completed(slates))
    log_probs_WX = np.diff(sums_WX, axis=1, prepend=0.0)
    found = []
    for keys_X, log_probs_X in zip(keys_WX, log_probs_WX, strict=True):
        rows = zip(
            view.space.unpack(keys_X).tolist(),
            view.video_ids_of(keys_X),
            log_probs_X.tolist(),
            strict=True,
        )
        candidates = tuple(
            Candidate(tuple(semantic_id), video_id, log_prob)
            for semantic_id, video_id, log_prob in rows
            if video_id is not None
        )
        if len(candidates) == len(keys_X):
            found.append(Slate(candidates))
            if len(found) == top_k:
                break
    return found

"""Beam search for live semantic IDs with a Hugging Face causal LM; knows nothing of requests, text and swaps.

A prompt is run once, also when several requests ask it of different views. Afterwards its beams are not rows with a
cache each but tokens side by side in the prompt's one row: each attends to the prompt and to its own ancestors, and
to no other beam. So the prompt's keys and values are neither repeated nor reordered.

Legend: B distinct prompts, W beams, T tokens in the cache, V vocabulary, K codes of a level, C children.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from models.semantic_id import SemanticId
from models.trie import TrieView


@dataclass(frozen=True)
class Candidate:
    """A live video that the model proposes.

    Attributes:
        log_prob: natural log, summed over the levels; each level's softmax is over the whole vocabulary.
    """

    semantic_id: SemanticId
    video_id: str
    log_prob: float


class _Beams(NamedTuple):
    """The beams of one request, ascending by prefix, so that the first of equals has the smaller key."""

    parents_W: NDArray[np.int64]
    codes_W: NDArray[np.int64]
    prefixes_W: NDArray[np.int64]
    log_probs_W: NDArray[np.float64]


class _Place(NamedTuple):
    """Where a request's beams stand: in which prompt's row, from where to where."""

    row: int
    start: int
    stop: int


class _Row(NamedTuple):
    """What is appended behind a prompt: of each beam, its place in the step before, and its newest code."""

    parents_W: NDArray[np.int64]
    codes_W: NDArray[np.int64]


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    views: Sequence[TrieView],
    *,
    level_token_ids: Sequence[torch.Tensor],
    beam_width: int,
    top_k: int,
    pad_token_id: int,
    smoothing: Sequence[float] = (),
) -> list[list[Candidate]]:
    """Return for each prompt the most probable live videos, best first; ties go to the smaller packed key.

    A beam grows only by codes that lead to a semantic ID in its request's view. One that nothing may follow ends,
    so there are fewer than top_k candidates where fewer are live, and none from an empty view.

    With a prompt's `smoothing` above 0, each code but the first has that share of its probability from the uniform
    distribution over the codes that may follow, as in Jelinek and Mercer's interpolation (1980): a path that nobody has
    watched yet has hardly any probability of its own, though its first code says what the video is like.

    Shapes: prompts B lists of LLM tokens, views B, smoothing B or none; level_token_ids L tensors [K] int64, the LLM
    token of each code.
    The model attends to all of its context (no sliding window), by the `sdpa` or `eager` implementation.

    Raises:
        ValueError: the arguments disagree in number or size, or a prompt is empty.
    """
    _check(prompts, views, level_token_ids, beam_width, top_k)
    shares = list(smoothing) or [0.0] * len(prompts)
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"smoothing is {shares}, expected shares, 0 to 1")
    if not any(views):
        return [[] for _ in views]
    distinct = {tuple(prompt): row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    places = [_Place(distinct[tuple(prompt)], 0, 1) for prompt in prompts]
    decoder = _SharedPromptDecoder(model, pad_token_id)
    logits_BWV = decoder.prefill(list(distinct))
    searches = [_root() for _ in prompts]
    for level, token_ids_K in enumerate(level_token_ids):
        if level > 0:
            places, rows = _side_by_side(searches, places, len(distinct))
            logits_BWV = decoder.step(rows, level_token_ids[level - 1])
        log_probs_BWK = _code_log_probs(logits_BWV, token_ids_K)
        searches = [
            _extended(
                beams, view, level, log_probs_BWK[at.row, at.start : at.stop], beam_width, share
            )
            for beams, view, at, share in zip(searches, views, places, shares, strict=True)
        ]
        if not any(len(beams.codes_W) for beams in searches):
            break
    return [_best(beams, view, top_k) for beams, view in zip(searches, views, strict=True)]


def _check(
    prompts: Sequence[Sequence[int]],
    views: Sequence[TrieView],
    level_token_ids: Sequence[torch.Tensor],
    beam_width: int,
    top_k: int,
) -> None:
    if len(prompts) != len(views):
        raise ValueError(f"got {len(prompts)} prompts and {len(views)} views; each prompt has one")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty; the model needs at least one token to continue")
    if not 1 <= top_k <= beam_width:
        raise ValueError(f"top_k is {top_k}, expected 1 to beam_width, which is {beam_width}")
    sizes = tuple(len(token_ids_K) for token_ids_K in level_token_ids)
    for view in views:
        if view.space.level_sizes != sizes:
            raise ValueError(
                f"level_token_ids has levels of {sizes} codes, the view has {view.space.level_sizes}:"
                " model and trie must be of one codebook_version"
            )


def _root() -> _Beams:
    """Return the one beam every search starts from: the empty prefix."""
    nothing = np.zeros(1, dtype=np.int64)
    return _Beams(nothing, nothing, nothing, np.zeros(1))


def _side_by_side(
    searches: Sequence[_Beams], before: Sequence[_Place], num_rows: int
) -> tuple[list[_Place], list[_Row]]:
    """Set the beams of all requests behind their prompts; those of one prompt one request after the other."""
    widths = [0] * num_rows
    parents: list[list[NDArray[np.int64]]] = [[] for _ in range(num_rows)]
    codes: list[list[NDArray[np.int64]]] = [[] for _ in range(num_rows)]
    places = []
    for beams, (row, start, _) in zip(searches, before, strict=True):
        places.append(_Place(row, widths[row], widths[row] + len(beams.codes_W)))
        widths[row] = places[-1].stop
        parents[row].append(start + beams.parents_W)
        codes[row].append(beams.codes_W)
    rows = [
        _Row(np.concatenate(each), np.concatenate(newest))
        for each, newest in zip(parents, codes, strict=True)
    ]
    return places, rows


def _code_log_probs(logits_BWV: torch.Tensor, token_ids_K: torch.Tensor) -> NDArray[np.float32]:
    """Return log_softmax over the whole vocabulary, at the level's codes only: [B, W, K]."""
    logits_BWV = logits_BWV.float()
    token_ids_K = token_ids_K.to(logits_BWV.device)
    normalizer_BW1 = logits_BWV.logsumexp(dim=-1, keepdim=True)
    return (logits_BWV[..., token_ids_K] - normalizer_BW1).cpu().numpy()


def _extended(
    beams: _Beams,
    view: TrieView,
    level: int,
    log_probs_WK: NDArray[np.float32],
    beam_width: int,
    share: float,
) -> _Beams:
    """Return the best allowed continuations of all beams, at most beam_width."""
    if share > 0 and level > 0:
        log_probs_WK = _smoothed(beams.prefixes_W, view, level, log_probs_WK, share)
    best = view.best_children(
        beams.prefixes_W, level, beams.log_probs_W, log_probs_WK, count=beam_width
    )
    return _Beams(best.row_C, best.code_C, best.prefix_C, best.log_probs_C)


def _smoothed(
    prefixes_W: NDArray[np.int64],
    view: TrieView,
    level: int,
    log_probs_WK: NDArray[np.float32],
    share: float,
) -> NDArray[np.float32]:
    """Return the log-probs mixed with the uniform distribution over what may follow each prefix."""
    live = view.children(prefixes_W, level)
    num_live_W = np.bincount(live.row_C, minlength=len(prefixes_W))
    probs_C = np.exp(log_probs_WK[live.row_C, live.code_C].astype(np.float64))
    mixed_C = (1 - share) * probs_C + share / num_live_W[live.row_C]
    smoothed_WK = log_probs_WK.copy()
    smoothed_WK[live.row_C, live.code_C] = np.log(mixed_C)
    return smoothed_WK


def _best(beams: _Beams, view: TrieView, top_k: int) -> list[Candidate]:
    """Return the best beams whose videos are live still."""
    order = np.argsort(-beams.log_probs_W, kind="stable")
    keys = beams.prefixes_W[order]
    rows = zip(
        view.space.unpack(keys).tolist(),
        view.video_ids_of(keys),
        beams.log_probs_W[order].tolist(),
        strict=True,
    )
    found = [
        Candidate(tuple(semantic_id), video_id, log_prob)
        for semantic_id, video_id, log_prob in rows
        if video_id is not None
    ]
    return found[:top_k]


class _SharedPromptDecoder:
    """One cache row per prompt: the prompt, then the tokens of all its beams, level after level."""

    def __init__(self, model: PreTrainedModel, pad_token_id: int) -> None:
        self._model = model
        self._pad_token_id = pad_token_id
        self._cache = DynamicCache()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run the prompts and return the logits after the last token of each [B, 1, V].

        They are padded on the right: no token of a prompt looks ahead, so this pass needs no mask but the causal
        one, of which attention computes half.
        """
        device = self._model.device
        lengths = [len(prompt) for prompt in prompts]
        rows = [
            [*prompt, *[self._pad_token_id] * (max(lengths) - len(prompt))] for prompt in prompts
        ]
        tokens_BT = torch.tensor(rows, device=device)
        self._next_position_B1 = torch.tensor(lengths, device=device)[:, None]
        positions_T = torch.arange(max(lengths), device=device)
        # What each beam may attend to; at first there is one beam, the prompt itself.
        self._visible_BWT = (positions_T < self._next_position_B1)[:, None, :]
        ends_E, end_of_B = np.unique(np.array(lengths) - 1, return_inverse=True)
        logits_BEV: torch.Tensor = self._model(
            input_ids=tokens_BT,
            position_ids=positions_T.expand(len(rows), -1),
            past_key_values=self._cache,
            logits_to_keep=torch.from_numpy(ends_E).to(device),
        ).logits
        return logits_BEV[range(len(rows)), end_of_B.tolist()][:, None]

    def step(self, rows: Sequence[_Row], token_ids_K: torch.Tensor) -> torch.Tensor:
        """Append the beams' newest codes to the cache and return the logits after each [B, W, V].

        A row with fewer beams than another is filled with copies of code 0, which nobody reads.
        """
        device = self._model.device
        parents_BW = _stacked([row.parents_W for row in rows]).to(device)
        codes_BW = _stacked([row.codes_W for row in rows]).to(device)
        batch, width = codes_BW.shape
        seen_T = self._visible_BWT.shape[-1]
        ancestors_BWT = self._visible_BWT.gather(1, parents_BW[..., None].expand(-1, -1, seen_T))
        itself_BWW = torch.eye(width, dtype=torch.bool, device=device).expand(batch, -1, -1)
        self._visible_BWT = torch.cat([ancestors_BWT, itself_BWW], dim=-1)
        # The mask is added to the attention scores: a form that every attention implementation takes.
        mask_B1WT = torch.zeros(self._visible_BWT.shape, dtype=self._model.dtype, device=device)
        mask_B1WT.masked_fill_(~self._visible_BWT, torch.finfo(mask_B1WT.dtype).min)
        logits_BWV: torch.Tensor = self._model(
            input_ids=token_ids_K.to(device)[codes_BW],
            attention_mask=mask_B1WT[:, None],
            position_ids=self._next_position_B1.expand(-1, width),
            past_key_values=self._cache,
        ).logits
        self._next_position_B1 = self._next_position_B1 + 1
        return logits_BWV


def _stacked(rows: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Return the rows as one tensor, the shorter ones filled with zeros."""
    stacked = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(stacked)

"""Decode steps without a constraint, and beside the dict trie; knows nothing of memory and writes.

Legend: W beams; K codes of a level; V vocabulary; T tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from models.base_models import NANO_MODEL, extended_lrm
from models.lrm import Lrm, build_lrm
from models.semantic_id import SemanticIdSpace
from models.trie import TrieView
from tests.bench.parts.trie_peers import DictTrie

PROMPT_TOKENS = 700
DICT_TURNS = 5


def lrm_of(name: str, space: SemanticIdSpace) -> Lrm:
    """Return an LRM that has learned nothing, which takes as long as one that has."""
    if name == NANO_MODEL:
        return build_lrm(["User: unknown\nWatch history:"], space)
    vectors = [torch.randn(size, 8) for size in space.codebook_sizes]
    return extended_lrm(name, space, vectors)


@contextmanager
def model_steps(
    names: Sequence[str], space: SemanticIdSpace, width: int
) -> Iterator[dict[str, Callable[[], list[float]]]]:
    """Yield for each model what times the steps of a search: ms, averaged over the levels; with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield {name: _steps(lrm_of(name, space), width) for name in names}
    finally:
        torch.set_num_threads(threads)


def _steps(lrm: Lrm, width: int) -> Callable[[], list[float]]:
    cache = DynamicCache()
    with torch.inference_mode():
        prompt_BT = torch.randint(0, 300, (1, PROMPT_TOKENS))
        lrm.model(input_ids=prompt_BT, past_key_values=cache, logits_to_keep=1)

    @torch.inference_mode()
    def timed() -> list[float]:
        began = time.thread_time()
        for level in range(1, lrm.space.num_levels):
            tokens_BW = lrm.level_token_ids[level - 1][:width].repeat(width)[None, :width]
            seen = PROMPT_TOKENS + (level - 1) * width
            mask_B1WT = torch.zeros(1, 1, width, seen + width)
            mask_B1WT[..., PROMPT_TOKENS:] = torch.finfo(torch.float32).min
            for each in range(level):
                start = PROMPT_TOKENS + each * width
                mask_B1WT[0, 0, :, start : start + width].fill_diagonal_(0)
            positions_BW = torch.full((1, width), PROMPT_TOKENS + level - 1)
            logits_BWV = lrm.model(
                input_ids=tokens_BW,
                attention_mask=mask_B1WT,
                position_ids=positions_BW,
                past_key_values=cache,
            ).logits
            normalizer_BW1 = logits_BWV.logsumexp(-1, keepdim=True)
            (logits_BWV[..., lrm.level_token_ids[level]] - normalizer_BW1).numpy()
        spent_s = time.thread_time() - began
        cache.crop(PROMPT_TOKENS - cache.get_seq_length())
        return [1000 * spent_s / (lrm.space.num_levels - 1)]

    timed()
    return timed


def dict_and_trie_ms(
    space: SemanticIdSpace, keys_N: NDArray[np.int64], view: TrieView, width: int
) -> tuple[float, float]:
    """Return the milliseconds of a step's mask and choice, averaged over levels: by the dict trie, and by ours.

    Both begin from the logits of all beams and walk the same beams.
    """
    first, blocks = 2048, []  # after the text's tokens
    for size in space.level_sizes:
        blocks.append(torch.arange(first, first + size))
        first += size
    trie = DictTrie(space, keys_N, blocks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    theirs, ours = [], []
    try:
        for turn in range(DICT_TURNS):
            torch.manual_seed(turn)
            spent, our_spent, prefixes, sums = 0.0, 0.0, np.zeros(1, np.int64), np.zeros(1)
            paths = torch.zeros(1, 0, dtype=torch.int64)
            for level, block in enumerate(blocks):
                logits_WV = torch.randn(len(prefixes), first) * 2
                began = time.thread_time()
                trie.step(paths, logits_WV, torch.from_numpy(sums))
                spent += time.thread_time() - began
                began = time.thread_time()
                normalizer_W1 = logits_WV.logsumexp(-1, keepdim=True)
                log_probs_WK = (logits_WV[:, block] - normalizer_W1).numpy()
                best = view.best_children(prefixes, level, sums, log_probs_WK, count=width)
                our_spent += time.thread_time() - began
                prefixes, sums = best.prefix_C, best.log_probs_C
                newest = block[torch.from_numpy(best.code_C)][:, None]
                paths = torch.cat([paths[torch.from_numpy(best.row_C)], newest], dim=1)
            theirs.append(1000 * spent / len(blocks))
            ours.append(1000 * our_spent / len(blocks))
    finally:
        torch.set_num_threads(threads)
    return statistics.median(theirs), statistics.median(ours)

"""Others' ways to constrain generation to live semantic IDs, as they are usually written; knows nothing of ours.

- STATIC (2602.22647): a bitmap of the first two levels and rows of (token, next row) below, built of all sorted
  semantic IDs at once, and anew for every change.
- The dict trie: one dict per prefix, asked once per beam by Hugging Face's `prefix_allowed_tokens_fn`.

Legend: N semantic IDs; W beams; V vocabulary; L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from models.semantic_id import SemanticIdSpace

Int64s = NDArray[np.int64]


class StaticIndex(NamedTuple):
    """A bitmap of pairs of first codes, and for each level below the rows of each prefix."""

    dense: NDArray[np.bool_]
    row_starts: list[NDArray[np.int32]]
    tokens: list[NDArray[np.int32]]


def static_index(space: SemanticIdSpace, keys_N: Int64s) -> StaticIndex:
    """Build the index of packed semantic IDs, which ascend."""
    longer_N = keys_N
    bits = space.level_bits
    row_starts: list[NDArray[np.int32]] = []
    tokens: list[NDArray[np.int32]] = []
    for level in range(space.num_levels - 1, 1, -1):
        tokens.insert(0, (longer_N & ((1 << bits[level]) - 1)).astype(np.int32))
        prefix_N = longer_N >> bits[level]
        firsts = np.flatnonzero(np.diff(prefix_N, prepend=-1))
        row_starts.insert(0, np.append(firsts, len(longer_N)).astype(np.int32))
        longer_N = prefix_N[firsts]
    dense = np.zeros(1 << (bits[0] + bits[1]), np.bool_)
    dense[longer_N] = True
    return StaticIndex(dense, row_starts, tokens)


class DictTrie:
    """Nested dicts of LLM tokens behind Hugging Face's logits processor."""

    def __init__(
        self, space: SemanticIdSpace, keys_N: Int64s, level_token_ids: Sequence[torch.Tensor]
    ) -> None:
        """Build the dicts."""
        self._root: dict[int, Any] = {}
        tokens_LN = [
            token_ids.numpy()[codes].tolist()
            for token_ids, codes in zip(level_token_ids, space.unpack(keys_N).T, strict=True)
        ]
        for path in zip(*tokens_LN, strict=True):
            node = self._root
            for token in path:
                node = node.setdefault(token, {})

    def step(
        self, paths_WL: torch.Tensor, logits_WV: torch.Tensor, beam_scores_W: torch.Tensor
    ) -> torch.Tensor:
        """Return the best continuations as `generate` picks them: log-softmax, mask, add, and top 2 W."""
        width = len(paths_WL)

        def allowed(_: int, path: torch.Tensor) -> list[int]:
            node = self._root
            for token in path.tolist():
                node = node[token]
            return list(node)

        processor = PrefixConstrainedLogitsProcessor(allowed, width)
        scores_WV = processor(paths_WL, logits_WV.log_softmax(-1)) + beam_scores_W[:, None]
        return scores_WV.flatten().topk(2 * width).indices

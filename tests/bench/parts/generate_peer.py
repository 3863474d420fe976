"""Constrained generation as Hugging Face has it: `generate` with beams, and a dict trie that says what may follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.lrm import Lrm
from models.semantic_id import SemanticId

Found = list[tuple[SemanticId, float]]


class GeneratePeer:
    """Answers what beam search answers, for prompts of one length."""

    def __init__(self, lrm: Lrm, semantic_ids_NL: NDArray[np.int64]) -> None:
        self._lrm = lrm
        self._codes = {
            int(token_id): code
            for token_ids in lrm.level_token_ids
            for code, token_id in enumerate(token_ids)
        }
        levels = zip(lrm.level_token_ids, semantic_ids_NL.T, strict=True)
        tokens_NL = np.stack([ids.numpy()[codes_N] for ids, codes_N in levels], axis=1)
        self._trie: dict[int, Any] = {}
        for tokens in tokens_NL.tolist():
            node = self._trie
            for token in tokens:
                node = node.setdefault(token, {})

    def search(
        self, prompts: Sequence[Sequence[int]], *, beam_width: int, top_k: int
    ) -> list[Found]:
        """Return each prompt's most probable semantic IDs, best first, with their summed log_probs."""
        tokens_BT = torch.tensor(prompts)
        length = tokens_BT.shape[1]

        def allowed(_row: int, tokens_T: torch.Tensor) -> list[int]:
            node = self._trie
            for token in tokens_T[length:].tolist():
                node = node.get(token, {})
            return list(node)

        generated = self._lrm.model.generate(
            tokens_BT,
            attention_mask=torch.ones_like(tokens_BT),
            prefix_allowed_tokens_fn=allowed,
            num_beams=beam_width,
            num_return_sequences=top_k,
            max_new_tokens=self._lrm.space.num_levels,
            do_sample=False,
            length_penalty=0.0,  # sums log_probs, where another takes a mean
            early_stopping=True,
            eos_token_id=None,
            pad_token_id=self._lrm.pad_token_id,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = [
            (tuple(self._codes[token] for token in tokens[length:]), score)
            for tokens, score in zip(
                generated.sequences.tolist(), generated.sequences_scores.tolist(), strict=True
            )
        ]
        return [found[start : start + top_k] for start in range(0, len(found), top_k)]

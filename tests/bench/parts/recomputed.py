"""Whether an answer's scores are those of the model that it names, computed anew from that model's checkpoint.

The model reads prompt and codes in one pass, without search, cache and batch. Knows nothing of how it was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from models.lrm import Lrm, load_lrm
from models.prompts import Ask, Videos, render_request
from models.semantic_id import SemanticId, parse_semantic_id
from streams.events import CheckpointPromoted, UserHistory, to_json
from streams.history import decode_history

TOLERANCE = 0.01
"""Of a natural log of a probability: rounding differs by a hundredth of that, versions by much more."""
KEPT_MODELS = 4


class Recomputed:
    """Scores answers by the checkpoints that were promoted."""

    def __init__(
        self,
        store: Path,
        checkpoints: Mapping[int, CheckpointPromoted],
        videos: Videos,
        histories: Mapping[str, UserHistory],
    ) -> None:
        """Read checkpoints, by version, from a local store as they are needed."""
        self._videos, self._histories = videos, histories

        @lru_cache(KEPT_MODELS)
        def lrm(version: int) -> Lrm:
            promoted = checkpoints[version]
            return load_lrm(store / promoted.path, sha256=promoted.sha256)

        self._lrm: Callable[[int], Lrm] = lrm

    def agrees(self, request: Mapping[str, Any], items: Sequence[Any], version: int) -> bool:
        """Return whether version `version` gives the first and the last item the scores that they have."""
        return all(
            abs(self._score(request, item, version) - item["score"]) <= TOLERANCE
            for item in (items[0], items[-1])
        )

    def _score(self, request: Mapping[str, Any], item: Mapping[str, Any], version: int) -> float:
        lrm = self._lrm(version)
        _, history = decode_history(to_json(self._histories[request["user_id"]]))
        ask = Ask(request["surface"], request.get("context_video_id"))
        prompt = render_request(
            history.user, history.entries, ask, self._videos, history_max=lrm.history_max
        )
        return log_prob(lrm, lrm.encode(prompt), parse_semantic_id(item["semantic_id"]))


@torch.inference_mode()
def log_prob(lrm: Lrm, prompt: Sequence[int], semantic_id: SemanticId) -> float:
    """Return the natural log of the probability that the codes follow the prompt; softmax over the whole vocabulary."""
    codes = [
        int(token_ids_K[code])
        for token_ids_K, code in zip(lrm.level_token_ids, semantic_id, strict=True)
    ]
    tokens_1T = torch.tensor([[*prompt, *codes]])
    log_probs_TV = lrm.model(input_ids=tokens_1T).logits[0].log_softmax(dim=-1)
    return sum(
        float(log_probs_TV[len(prompt) - 1 + level, code]) for level, code in enumerate(codes)
    )

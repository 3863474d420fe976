"""How much arithmetic a training step needs at least, and how much this machine could do; knows nothing of datasets.

Counted is what the loss asks for, however it is computed: a multiplication and an addition are two operations, the
backward pass costs twice the forward one, nothing is counted for padding or for what a mask hides.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from models.examples import IGNORED, Example
from models.lrm import Lrm

SIZES = (512, 1024, 2048)
FLOAT32_MODES = ("ieee", "bf16")  # by MKL; by oneDNN, where it may also round


def training_flops(lrm: Lrm, examples: Iterable[Example]) -> float:
    """Return the floating-point operations of one pass over the examples.

    6 N a token for the N weights of the layers' matrices, 6 D V a *labelled* token for the output layer, and
    12 L D for every earlier token, or itself, that a token attends to: queries by keys and scores by values, 2 D each,
    three times in L layers.

    Source: Kaplan et al. 2020 (2001.08361) sec. 2.1; Chowdhery et al. 2022 (2204.02311) app. B, which counts
    attention as if nothing were masked, and an output for every token.
    """
    config = lrm.model.config
    embedding = lrm.model.get_output_embeddings().weight
    matrices = [one for one in lrm.model.parameters() if one.ndim == 2 and one is not embedding]
    body = sum(one.numel() for one in matrices)
    tokens = labelled = attended = 0
    for example in examples:
        length = len(example.token_ids)
        tokens += length
        labelled += sum(label != IGNORED for label in example.labels[1:])
        attended += length * (length + 1) // 2
    attention = 12 * config.num_hidden_layers * config.hidden_size * attended
    return float(6 * body * tokens + 6 * embedding.numel() * labelled + attention)


def matmul_peak_flops_per_s(*, repeats: int = 20) -> float:
    """Return the most float32 operations per second of any square product, by either library, on torch's threads."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    best = 0.0
    try:
        for mode in FLOAT32_MODES:
            matmul.fp32_precision = mode
            best = max(best, *(_flops_per_s(size, repeats) for size in SIZES))
    finally:
        matmul.fp32_precision = before
    return best


def _flops_per_s(size: int, repeats: int) -> float:
    left, right = torch.randn(size, size), torch.randn(size, size)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(left, right)
        found.append(time.perf_counter() - started)
    return 2 * size**3 / min(found)

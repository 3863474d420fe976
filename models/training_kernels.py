"""How attention and matrix products are computed while an LRM is trained on a CPU; knows nothing of losses.

- Attention by plain products in two halves: the first half's queries see none of the second half's keys, so a quarter
  of the products is left out. PyTorch's fused kernel for CPUs works in pieces too small for a fast product.
- float32 products by oneDNN where it keeps float32's precision. PyTorch's default, MKL, leaves the wide registers of
  AMD's processors unused: there oneDNN does twice as many operations per second. It keeps a program for each shape
  that it met, by default of the last thousand, and hardly a block has the shape of another: 600 MB within forty
  small rounds.

Legend: B blocks, H heads, G heads of keys, T tokens, C head dimension.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import PreTrainedModel

CAUSAL_HALVES = "causal_halves"
CAUSAL_HALVES_MODELS = ("llama",)  # whose attention is nothing but what is computed here
SHAPES_KEPT = 64  # a step has some thirty
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, PyTorch's
    os.environ.setdefault(_cache, str(SHAPES_KEPT))  # read at the first product
FLOAT32_ERROR_MAX = (
    1e-5  # of the largest sum; of numbers rounded to bfloat16 it would be a few thousandths
)


@contextmanager
def training_kernels(model: PreTrainedModel) -> Iterator[None]:
    """Compute with these kernels within the context; elsewhere than on a CPU, models keep PyTorch's fused attention.

    So do models of other kinds.
    """
    attention = model.config._attn_implementation  # noqa: SLF001 - its only name
    if model.device.type == "cpu" and model.config.model_type in CAUSAL_HALVES_MODELS:
        model.set_attn_implementation(CAUSAL_HALVES)
    try:
        with fast_products():
            yield
    finally:
        model.set_attn_implementation(attention)


@contextmanager
def fast_products() -> Iterator[None]:
    """Have oneDNN compute float32 products within the context, where that loses nothing.

    Not for two threads at once: the library is the whole process's choice.
    """
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    if _onednn_keeps_float32():
        products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


@cache
def _onednn_keeps_float32() -> bool:
    """Return whether products that may be computed from bfloat16 numbers are computed from float32 all the same.

    That permission is the only way to have oneDNN compute them. It makes use of it where the processor has a unit for
    it (AMX), and then a round would no longer come out the same on every machine.
    """
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    before = products.fp32_precision
    try:
        products.fp32_precision = "bf16"
        found = left @ right
    finally:
        products.fp32_precision = before
    exact = left.double() @ right.double()
    return bool((found - exact).abs().max() < FLOAT32_ERROR_MAX * exact.abs().max())


def _causal_halves(
    module: nn.Module,
    query_BHTC: Tensor,
    key_BGTC: Tensor,
    value_BGTC: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return causal attention under a mask that is added to the scores.

    Shapes: attention_mask [B, 1, T, T] -> [B, T, H, C].
    """
    num_heads, num_tokens = query_BHTC.shape[1:3]
    key_BHTC, value_BHTC = (
        each.repeat_interleave(num_heads // each.shape[1], dim=1)
        if each.shape[1] < num_heads
        else each
        for each in (key_BGTC, value_BGTC)
    )
    query_BHTC = query_BHTC * scaling
    half = (num_tokens + 1) // 2
    outputs = []
    for start, end in ((0, half), (half, num_tokens)):
        score_BHTT = query_BHTC[:, :, start:end] @ key_BHTC[:, :, :end].transpose(2, 3)
        weight_BHTT = (score_BHTT + attention_mask[:, :, start:end, :end]).softmax(dim=-1)
        outputs.append(weight_BHTT @ value_BHTC[:, :, :end])
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL_HALVES, _causal_halves)

"""Dropout for models that were made without: a context in which it is on, so that serving never meets it.

A small model trained from scratch goes over the same histories many times; what it cannot rely on, it does not learn
by heart. Models of the Llama family have dropout nowhere but in attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers.modeling_utils import PreTrainedModel

BRANCHES = (
    "self_attn",
    "mlp",
)  # what each layer adds to the residual stream, as Llama and its kin name it


@contextmanager
def dropped_out(model: PreTrainedModel, probability: float, *, seed: int) -> Iterator[None]:
    """Drop out embeddings and what each layer's branches add, within the context (Vaswani et al. 2017, sec. 5.4).

    The same seed drops the same; PyTorch's own random state is left as it was.
    """
    if not probability:
        yield
        return

    def drop(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> object:
        if isinstance(output, Tensor):
            return dropout(output, probability)
        return dropout(output[0], probability), *output[1:]

    places = [
        model.get_input_embeddings(),
        *(
            each
            for name, each in model.base_model.named_modules()
            if name.rsplit(".", 1)[-1] in BRANCHES
        ),
    ]
    hooks = [place.register_forward_hook(drop) for place in places]
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        for hook in hooks:
            hook.remove()

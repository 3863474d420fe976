from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from models import training, training_kernels
from models.examples import Batch, collate, pack
from models.training import TrainingConfig, batch_loss, make_optimizer, prepare, train_on
from tests.lrm_factories import tiny_lrm, video_examples

CONFIG = TrainingConfig(block_tokens=96, blocks_per_step=2, dropout=0.0)


def some_batch(*, block_tokens: int) -> Batch:
    lrm = tiny_lrm()
    blocks = pack(video_examples(lrm, 24), block_tokens=block_tokens, rng=random.Random(0))
    return collate(blocks[:3], pad_token_id=lrm.pad_token_id)


def tiny_llama(num_key_value_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=num_key_value_heads,
            intermediate_size=48,
            attn_implementation="sdpa",
        )
    )


def logits(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Of the tokens that belong to an example."""
    found = model(
        input_ids=batch.token_ids_BT,
        position_ids=batch.position_ids_BT,
        attention_mask=batch.mask_B1TT,
    ).logits
    return found[batch.mask_B1TT[:, 0, :, 0] == 0]


@pytest.mark.parametrize("num_key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("block_tokens", [64, 65])
def test_attention_in_halves_equals_pytorchs(num_key_value_heads: int, block_tokens: int) -> None:
    model, batch = tiny_llama(num_key_value_heads), some_batch(block_tokens=block_tokens)
    expected = logits(model, batch)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), model.lm_head.weight)
    with training_kernels.training_kernels(model):
        found = logits(model, batch)
        (gradient,) = torch.autograd.grad(found.square().sum(), model.lm_head.weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_training_with_these_kernels_has_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses() -> list[float]:
        lrm = tiny_lrm()
        blocks = pack(video_examples(lrm), block_tokens=96, rng=random.Random(0))
        return train_on(lrm, make_optimizer(lrm, CONFIG), blocks, CONFIG)

    fast = losses()
    monkeypatch.setattr(training, "training_kernels", nullcontext)
    assert fast == pytest.approx(losses(), rel=1e-4)
    assert len(fast) > 5


def test_what_was_set_before_is_set_afterwards_even_after_an_error() -> None:
    model = tiny_llama(4)
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    with training_kernels.training_kernels(model):
        assert model.config._attn_implementation == training_kernels.CAUSAL_HALVES
    with pytest.raises(ZeroDivisionError), training_kernels.training_kernels(model):
        _ = 1 / 0
    assert model.config._attn_implementation == "sdpa"
    assert torch.backends.mkldnn.matmul.fp32_precision == precision  # type: ignore[attr-defined]


def test_model_of_another_kind_keeps_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_kernels, "CAUSAL_HALVES_MODELS", ())
    model = tiny_llama(4)
    with training_kernels.training_kernels(model):
        assert model.config._attn_implementation == "sdpa"


def test_model_that_is_not_on_a_cpu_keeps_pytorchs_fused_attention() -> None:
    model = tiny_llama(4).to("meta")
    with training_kernels.training_kernels(model):
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="NOT RUN: no GPU here, so bfloat16 and fused attention on one are unproven by this run",
)
def test_training_on_a_gpu_in_bfloat16_loses_little() -> None:
    lrm = tiny_lrm()
    blocks = pack(video_examples(lrm), block_tokens=96, rng=random.Random(0))
    exact = float(batch_loss(lrm, blocks))
    prepare(lrm, CONFIG)
    with (
        training_kernels.training_kernels(lrm.model),
        sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION]),
    ):
        loss = batch_loss(lrm, blocks, bfloat16=True)
        loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert all(bool(torch.isfinite(each.grad).all()) for each in lrm.model.parameters())


def test_products_keep_float32s_precision() -> None:
    left, right = torch.randn(2, 100, 100, generator=torch.Generator().manual_seed(1))
    with training_kernels.fast_products():
        found = left @ right
    torch.testing.assert_close(found.double(), left.double() @ right.double(), rtol=1e-4, atol=1e-4)

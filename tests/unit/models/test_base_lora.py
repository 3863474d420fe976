from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.base_lora import plain_weights
from models.examples import Block, pack, text_examples
from models.lrm import Lrm, load_lrm, save_lrm
from models.tasks import Recipe, video_texts
from models.training import TrainingConfig, batch_loss, make_optimizer, prepare, train_on
from tests.base_model_factories import tiny_extended
from tests.lrm_factories import some_videos

CONFIG = TrainingConfig(
    adapter_rank=4, peak_learning_rate=1e-2, round_learning_rate=1e-2, weight_decay=0.0
)


def some_blocks(lrm: Lrm) -> list[Block]:
    rng = random.Random(0)
    texts = video_texts(some_videos().values(), Recipe(), rng)
    return pack(text_examples(lrm, texts), block_tokens=128, rng=rng)


def trained(folder: Path, *, tied: bool) -> tuple[Lrm, dict[str, Tensor], list[float]]:
    lrm = tiny_extended(folder, tied=tied)
    before = {name: tensor.clone() for name, tensor in plain_weights(lrm.model).items()}
    prepare(lrm, CONFIG)
    losses = train_on(lrm, make_optimizer(lrm, CONFIG), some_blocks(lrm) * 3, CONFIG)
    return lrm, before, losses


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_learn_and_leave_the_base_vocabulary_alone(tmp_path: Path, tied: bool) -> None:
    lrm, before, losses = trained(tmp_path, tied=tied)
    after = plain_weights(lrm.model)
    assert after.keys() == before.keys()
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    first_code = int(torch.cat(lrm.level_token_ids).min())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name][:first_code], before[name][:first_code])
        assert not torch.equal(after[name][first_code:], before[name][first_code:])
    assert not torch.equal(*(each["model.layers.0.mlp.up_proj.weight"] for each in (before, after)))
    assert torch.equal(*(each["model.norm.weight"] for each in (before, after)))


def test_attached_adapters_change_nothing_at_first(tmp_path: Path) -> None:
    lrm = tiny_extended(tmp_path)
    blocks = some_blocks(lrm)[:2]
    before = batch_loss(lrm, blocks)
    prepare(lrm, CONFIG)
    assert torch.allclose(batch_loss(lrm, blocks), before, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_a_plain_model_with_the_same_logits(tmp_path: Path, tied: bool) -> None:
    lrm, _, _ = trained(tmp_path / "base", tied=tied)
    ids = torch.tensor([lrm.encode("a storm <a_1><b_2><c_1><d_0> river")])
    sha256 = save_lrm(lrm, tmp_path / "saved")
    loaded = load_lrm(tmp_path / "saved", sha256=sha256)
    assert type(loaded.model.get_input_embeddings()) is torch.nn.Embedding
    with torch.inference_mode():
        assert torch.allclose(loaded.model(ids).logits, lrm.model(ids).logits, atol=1e-5)


def test_few_weights_learn(tmp_path: Path) -> None:
    lrm = tiny_extended(tmp_path)
    prepare(lrm, CONFIG)
    optimizer = make_optimizer(lrm, CONFIG)
    learning = {id(one) for group in optimizer.param_groups for one in group["params"]}
    names = {name for name, one in lrm.model.named_parameters() if id(one) in learning}
    assert all(".lora_" in name or name.endswith(".code_rows") for name in names)
    assert any("q_proj.lora_A" in name for name in names)
    assert "model.embed_tokens.code_rows" in names


def test_bfloat16_learns_about_the_same_and_keeps_float32_weights(tmp_path: Path) -> None:
    losses = []
    for bfloat16 in (False, True):
        lrm = tiny_extended(tmp_path / str(bfloat16))
        config = replace(CONFIG, bfloat16=bfloat16)
        prepare(lrm, config)
        losses.append(train_on(lrm, make_optimizer(lrm, config), some_blocks(lrm), config)[-1])
        assert {one.dtype for one in lrm.model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_code_rows_learn_at_a_rate_of_their_own(tmp_path: Path) -> None:
    moved = []
    for code_rate in (1.0, 10.0):
        lrm = tiny_extended(tmp_path / str(code_rate))
        config = replace(CONFIG, code_rate=code_rate, round_learning_rate=1e-4)
        prepare(lrm, config)
        rows = lrm.model.get_input_embeddings().code_rows
        before = rows.detach().clone()
        train_on(
            lrm, make_optimizer(lrm, config), some_blocks(lrm)[: config.blocks_per_step], config
        )
        moved.append(float((rows.detach() - before).abs().max()))
    assert moved[1] == pytest.approx(
        10 * moved[0], rel=0.01
    )  # one step of AdamW is as long as its rate

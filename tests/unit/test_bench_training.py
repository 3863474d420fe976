"""The training benchmark: that its arms do the same work, how it counts operations, how it adds up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.examples import pack
from models.training import TrainingConfig, batch_loss
from tests.bench import training
from tests.bench.parts.model_flops import training_flops
from tests.bench.parts.training_arms import Arm, OurArm, PackedTrainerArm, PaddedTrainerArm
from tests.bench.parts.training_rounds import PARTS, Round, in_shards, parts_of
from tests.lrm_factories import shard_row, tiny_lrm, video_examples

CONFIG = TrainingConfig(block_tokens=64, blocks_per_step=2, dropout=0.0)


def measured_run(losses: Sequence[float] = (4.0, 4.01, 4.02, 3.99)) -> training.Run:
    rates = ([900.0, 1_000.0, 1_100.0], [500.0] * 3, [800.0] * 3, [625.0] * 3)
    names = ("ours", training.TRAINER, training.FAST_TRAINER, training.PACKED_TRAINER)
    return training.Run(
        threads=1,
        rates={
            name: [training.Rate(each, 2 * each) for each in of_arm]
            for name, of_arm in zip(names, rates, strict=True)
        },
        losses=dict(zip(names, losses, strict=True)),
        flops_per_token=2e6,
        peak_flops_per_s=1e10,
        rounds=[Round(10.0, dict.fromkeys(PARTS, 1.0))],
    )


def test_operations_are_those_that_pytorch_counts_without_what_a_mask_hides() -> None:
    lrm = tiny_lrm()
    lrm.model.set_attn_implementation("eager")  # the counter does not see into fused kernels
    (example,) = video_examples(lrm, 1)
    with FlopCounterMode(display=False) as counter:
        batch_loss(lrm, pack([example], block_tokens=64, rng=random.Random(0))).backward()  # type: ignore[no-untyped-call]
    length, config = len(example.token_ids), lrm.model.config
    hidden = 12 * config.num_hidden_layers * config.hidden_size * length * (length - 1) // 2
    rotary = length * config.head_dim  # the angles: one number in, half a head's dimensions out
    assert counter.get_total_flops() == training_flops(lrm, [example]) + hidden + rotary


@pytest.mark.filterwarnings("ignore::UserWarning")  # the Trainer's, of its own schedulers
def test_a_step_of_every_arm_moves_the_weights_alike() -> None:
    lrm = tiny_lrm()
    examples = video_examples(lrm, 4)
    one_step = len(pack(examples, block_tokens=64, rng=random.Random(0)))
    config = TrainingConfig(block_tokens=64, blocks_per_step=one_step, dropout=0.0)
    arms: list[Arm] = [
        OurArm(lrm, config, num_steps=10, seed=0),
        PackedTrainerArm(lrm, config, num_steps=10, seed=0),
        PaddedTrainerArm(lrm, config, num_steps=10, seed=0, batch_size=4, products=nullcontext),
    ]
    before = lrm.model.get_input_embeddings().weight
    moved = []
    for arm in arms:
        arm.train(examples)
        moved.append(arm.lrm.model.get_input_embeddings().weight - before)
    assert [arm.steps_done for arm in arms] == [1, 1, 1]
    assert moved[0].abs().max() > 1e-4
    for other in moved[1:]:
        torch.testing.assert_close(other, moved[0], rtol=1e-2, atol=1e-5)


def test_report_compares_medians_and_says_what_the_losses_were() -> None:
    found = {one.measure: one for one in training.measures(measured_run())}
    assert found["tokens_per_s"].ratio == 2.0
    assert found["tokens_per_cpu_s"].value == 2_000.0
    assert found["tokens_per_s_over_fast_trainer"].value == 1.25
    assert found["tokens_per_s_over_packed_trainer"].value == 1.6
    assert found["mfu"].value == pytest.approx(0.4)
    assert found["held_out_loss"].value == 4.0
    assert found["shard_to_promoted_s"].value == 10.0
    assert sum(found[f"time_in_{part}_s"].value for part in PARTS) == 10.0


def test_ours_learns_as_well_unless_somebody_is_below_by_more_than_the_tolerance() -> None:
    assert training.learns_as_well(measured_run().losses)
    assert training.learns_as_well(measured_run((4.0, 4.0, 4.0, 4.5)).losses)
    assert not training.learns_as_well(measured_run((4.0, 4.0, 4.0, 3.9)).losses)


def test_parts_of_a_round_add_up_to_all_of_it() -> None:
    within = {
        "score": 1.0, "examples": 0.25, "train": 1.75, "gates": 0.5, "adapters": 0.25, "checkpoint": 0.25,
    }  # fmt: skip
    parts = parts_of(6.0, {"notice": 0.5, "read": 0.25, "actor": 4.5}, within)
    assert sum(parts.values()) == 6.0
    assert set(parts) == set(PARTS)
    assert (parts["announce"], parts["other"]) == (0.75, 0.5)


def test_shards_share_no_row_and_hold_as_many_watches_as_asked_for() -> None:
    rows = [shard_row(f"u{user}", ["v1", "v2", "v3"]) for user in range(10)]
    shards = in_shards(rows, watches=8, count=2, rng=random.Random(0))
    drawn = [row.user_id for shard in shards for row in shard]
    assert [len(shard) for shard in shards] == [3, 3]
    assert len(set(drawn)) == len(drawn)

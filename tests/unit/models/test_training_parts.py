"""Several workers' parts of a step, computed by processes that talk over gloo."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from models.examples import Block, pack
from models.lrm import Lrm
from models.training import (
    Part,
    TrainingConfig,
    make_optimizer,
    optimizer_tensors,
    prepare,
    train_on,
)
from tests.base_model_factories import tiny_extended
from tests.lrm_factories import tiny_lrm, video_examples

CONFIG = TrainingConfig(block_tokens=128, blocks_per_step=3, dropout=0.0)
WORKERS = 2


def lrm_and_blocks(folder: Path, config: TrainingConfig) -> tuple[Lrm, list[Block]]:
    """Two steps, the second of which has one block: one of two workers has nothing to do in it."""
    lrm = tiny_extended(folder) if config.adapter_rank else tiny_lrm()
    prepare(lrm, config)
    blocks = pack(video_examples(lrm), block_tokens=config.block_tokens, rng=random.Random(0))
    return lrm, blocks[:4]


def trained(
    lrm: Lrm, blocks: list[Block], config: TrainingConfig, part: Part | None
) -> dict[str, torch.Tensor]:
    optimizer = make_optimizer(lrm, config)
    losses = train_on(lrm, optimizer, blocks, config, part=part)
    weights = {name: each.detach() for name, each in lrm.model.named_parameters()}
    return weights | optimizer_tensors(lrm.model, optimizer) | {"losses": torch.tensor(losses)}


def work(rank: int, folder: Path, configs: list[TrainingConfig]) -> None:
    torch.set_num_threads(1)
    # Made before the process group, within which Hugging Face saves on one worker only.
    given = [lrm_and_blocks(folder / f"{rank}-{n}", config) for n, config in enumerate(configs)]
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS
    )
    part = Part(rank, WORKERS)
    found = [trained(*each, config, part) for each, config in zip(given, configs, strict=True)]
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_workers_parts_add_up_to_one_workers_training(tmp_path: Path) -> None:
    configs = [CONFIG, replace(CONFIG, adapter_rank=4)]
    spawn(work, args=(tmp_path, configs), nprocs=WORKERS)  # type: ignore[no-untyped-call]
    everyones = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORKERS)]
    for number, config in enumerate(configs):
        lrm, blocks = lrm_and_blocks(tmp_path / f"alone-{number}", config)
        alone = trained(lrm, blocks, config, None)
        assert len(alone["losses"]) == 2
        for found in (each[number] for each in everyones):
            assert found.keys() == alone.keys()
            # Moments are gradients; AdamW's first steps are as long for the smallest of them.
            for name, expected in alone.items():
                torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)

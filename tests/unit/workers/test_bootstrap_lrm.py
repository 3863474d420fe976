from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from infra.errors import ConfigError
from infra.settings import Settings, with_values
from infra.storage import ObjectStore
from models.codebook import WEIGHTS_FILE, CodebookManifest, codebook_key
from models.examples import Behaviour
from models.lrm import TINY, Lrm
from models.training import TrainingConfig, train_on
from tests.base_model_factories import END, base_folder, code_vectors
from tests.lrm_factories import SPACE, new_watch, shard_row, some_videos
from workers import bootstrap_lrm
from workers.bootstrap_lrm import (
    BootstrapConfig,
    code_vectors_of,
    initial_fit,
    pretrained_lrm,
    thinned,
)

VIDEOS = some_videos()
ROWS = [
    shard_row(f"u{user}", [f"v{(user + step) % 24}" for step in range(6)]) for user in range(20)
]
MANIFEST = CodebookManifest(
    codebook_version=1,
    codebook_sizes=SPACE.codebook_sizes,
    disambiguation_size=SPACE.disambiguation_size,
    embedding_dim=6,
    encoders_sha256="",
    quantizer={},
    card={},
    files={},
)


def settings_with(folder: Path, base_model: str) -> Settings:
    settings = with_values(
        Settings(), storage__root=str(folder / "store"), training__base_model=base_model
    )
    levels = {f"codebook_{level}": each for level, each in enumerate(code_vectors())}
    key = f"{codebook_key(1)}/{WEIGHTS_FILE}"
    ObjectStore(settings.storage.root).put_bytes(key, save(levels))
    return settings


def test_first_fit_of_a_pretrained_base_lowers_its_loss(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, str(base_folder(tmp_path / "base")))
    config = BootstrapConfig(
        training=TrainingConfig(
            adapter_rank=4, peak_learning_rate=1e-2, round_learning_rate=1e-3, block_tokens=128
        ),
    )
    lrm = pretrained_lrm(settings, SPACE, code_vectors_of(settings, MANIFEST))
    state, losses = initial_fit(ROWS, VIDEOS, SPACE, config, seed=0, pretrained=lrm)
    assert state.lrm is lrm
    assert state.lrm.eos_token == END
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert state.anchor_loss < losses[0]
    learned = [watch for row in state.reservoir.rows for watch in row.watches]
    assert state.watch_counts.total() == len(learned) > 0


@pytest.mark.parametrize("busy_steps", [0, 3, 40])
def test_first_fit_takes_its_time_and_loses_only_what_a_busy_machine_took(
    busy_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that each step moves: by 20 s while somebody else has the machine, else by 2 s."""
    now_s, shares = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now_s)

    def progress(stage: str, share: float) -> None:
        nonlocal now_s
        if stage == "lrm":
            shares.append(share)
            now_s += 20.0 if len(shares) <= busy_steps else 2.0

    training = TrainingConfig(block_tokens=64, blocks_per_step=1)
    config = BootstrapConfig(lrm=TINY, training=training, epochs=100, fit_max_s=100.0)
    state, losses = initial_fit(ROWS, VIDEOS, SPACE, config, seed=0, progress=progress)
    free_steps = (100.0 - 20.0 * busy_steps) / 2.0
    assert len(losses) == len(shares)
    assert len(losses) == (busy_steps + free_steps if busy_steps < 40 else 5)
    assert shares == sorted(shares)
    if len(losses) > 20:  # of fewer, the last one's rate is of a time when there was some left
        [rate] = {each["lr"] / each["rate_share"] for each in state.optimizer.param_groups}
        assert rate == pytest.approx(training.round_learning_rate, rel=0.1)


@pytest.mark.parametrize(("share", "averaged"), [(0.0, 1), (0.1, 1), (0.4, 2), (0.9, 4)])
def test_first_fit_ends_with_the_mean_of_what_its_last_epochs_ended_with(
    share: float, averaged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []

    def trained(lrm: Lrm, *args: Any, **options: Any) -> list[float]:
        losses = train_on(lrm, *args, **options)
        ends.append([each.detach().clone() for each in lrm.model.parameters()])
        return losses

    monkeypatch.setattr(bootstrap_lrm, "train_on", trained)
    config = BootstrapConfig(
        lrm=TINY, training=TrainingConfig(block_tokens=64), epochs=4, averaged_share=share
    )
    state, _ = initial_fit(ROWS, VIDEOS, SPACE, config, seed=0)
    assert len(ends) == 4
    for weight, *found in zip(state.lrm.model.parameters(), *ends[-averaged:], strict=True):
        torch.testing.assert_close(weight, torch.stack(found).mean(0))


def test_each_epoch_leaves_other_watches_out_and_none_for_good() -> None:
    watches = [new_watch(f"v{number}", at_ms=number) for number in range(40)]
    histories = [Behaviour(None, [], watches)] * 50
    rng = random.Random(0)
    epochs = [[one.watches for one in thinned(histories, 0.3, rng)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    for kept in epochs:
        assert all(list(some) == [one for one in watches if one in some] for some in kept)
        assert 0.6 < sum(map(len, kept)) / (50 * 40) < 0.8
        assert min(map(len, kept)) < 0.55 * 40
        assert max(map(len, kept)) > 0.9 * 40
    assert [one.watches for one in thinned(histories, 0.0, rng)] == [watches] * 50


def test_nano_is_not_pretrained(tmp_path: Path) -> None:
    assert pretrained_lrm(settings_with(tmp_path, "nano"), SPACE, []) is None


def test_pretrained_config_changes_how_it_is_trained_and_nothing_else() -> None:
    config = BootstrapConfig(epochs=5)
    assert config.for_pretrained().epochs == 5
    assert config.for_pretrained().training != config.training


def test_unknown_base_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'smollm' is neither nano nor smollm2-135m"):
        pretrained_lrm(settings_with(tmp_path, "smollm"), SPACE, [])

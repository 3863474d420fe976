from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from infra.errors import VersionMismatchError
from models.base_lora import plain_weights
from models.examples import IGNORED, Behaviour, Block, behaviour_examples, pack
from models.lrm import Lrm, load_lrm, save_lrm
from models.surface_adapters import (
    BELONGS_TO_FILE,
    WEIGHTS_FILE,
    Adapter,
    Base,
    adapted,
    adapter_weights,
    load_adapter,
    read_adapter,
    save_adapter,
)
from models.training import TrainingConfig, make_optimizer, optimizer_tensors, prepare, train_on
from tests.base_model_factories import tiny_extended
from tests.lrm_factories import SeenWatch, new_watch, some_videos, tiny_lrm, video_examples

CONFIG = TrainingConfig(peak_learning_rate=1e-2, round_learning_rate=1e-2, blocks_per_step=2)


def bases(folder: Path) -> dict[str, Lrm]:
    """One whose weights all learn, and one that learns by code rows and adapters of its own."""
    extended = tiny_extended(folder)
    own = replace(CONFIG, adapter_rank=4)
    prepare(extended, own)
    train_on(extended, make_optimizer(extended, own), blocks_of(extended), own)
    return {"whole": tiny_lrm(), "extended": extended}


def blocks_of(lrm: Lrm) -> list[Block]:
    return pack(video_examples(lrm), block_tokens=128, rng=random.Random(0))


def trained(base: Lrm) -> tuple[Lrm, Adapter, list[float]]:
    lrm = adapted(base, name="home")
    optimizer = make_optimizer(lrm, CONFIG)
    losses = train_on(lrm, optimizer, blocks_of(lrm) * 3, CONFIG)
    return lrm, Adapter(adapter_weights(lrm), optimizer_tensors(lrm.model, optimizer)), losses


def logits(lrm: Lrm) -> Tensor:
    ids = torch.tensor([lrm.encode("storm number 3 <a_1><b_2><c_1><d_0> river")])
    with torch.inference_mode():
        return lrm.model(ids).logits


@pytest.mark.parametrize("kind", ["whole", "extended"])
def test_adapter_learns_and_its_base_stays_bit_for_bit(tmp_path: Path, kind: str) -> None:
    base = bases(tmp_path)[kind]
    before = {name: one.clone() for name, one in plain_weights(base.model).items()}
    training = {name: one.requires_grad for name, one in base.model.named_parameters()}
    expected = logits(base)
    assert torch.allclose(logits(adapted(base, name="home")), expected, atol=1e-6)
    lrm, _, losses = trained(base)
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    assert not torch.allclose(logits(lrm), expected, atol=1e-3)
    after = plain_weights(base.model)
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert torch.equal(logits(base), expected)
    assert training == {name: one.requires_grad for name, one in base.model.named_parameters()}


@pytest.mark.parametrize("kind", ["whole", "extended"])
def test_saved_adapter_is_loaded_by_peft_and_by_us(tmp_path: Path, kind: str) -> None:
    base = bases(tmp_path / "base")[kind]
    lrm, adapter, _ = trained(base)
    base_sha256 = save_lrm(base, tmp_path / "saved")
    folder = tmp_path / "saved" / "adapters" / "home"
    sha256 = save_adapter(adapter, folder, Base(3, base_sha256, 1))
    expected = logits(lrm)

    loaded = load_lrm(tmp_path / "saved")
    ours = load_adapter(loaded, folder, base_sha256=base_sha256, sha256=sha256)
    assert torch.allclose(logits(ours), expected, atol=1e-5)
    assert torch.allclose(logits(loaded), logits(base), atol=1e-5)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(folder))
    assert torch.allclose(logits(replace(lrm, model=theirs)), expected, atol=1e-5)
    found = read_adapter(folder)
    assert all(torch.equal(found.weights[name], one) for name, one in adapter.weights.items())
    assert found.optimizer.keys() == adapter.optimizer.keys()


def saved(folder: Path, base: Base) -> str:
    weights = adapter_weights(adapted(tiny_lrm(), name="home"))
    return save_adapter(Adapter(weights), folder / "home", base)


def test_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, Base(3, "aaa", 1))
    with pytest.raises(VersionMismatchError, match=r"weights aaa .* weights bbb .*own checkpoint"):
        load_adapter(tiny_lrm(), tmp_path / "home", base_sha256="bbb")


def test_adapter_of_another_codebook_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, Base(3, "aaa", 2))
    with pytest.raises(VersionMismatchError, match=r"codebook 2, .* codebook 1"):
        load_adapter(tiny_lrm(), tmp_path / "home", base_sha256="aaa")


def test_adapter_with_other_weights_than_announced_is_refused(tmp_path: Path) -> None:
    sha256 = saved(tmp_path, Base(3, "aaa", 1))
    load_adapter(tiny_lrm(), tmp_path / "home", base_sha256="aaa", sha256=sha256)
    with pytest.raises(VersionMismatchError, match="announced was 00"):
        load_adapter(tiny_lrm(), tmp_path / "home", base_sha256="aaa", sha256="0" * 64)


@pytest.mark.parametrize("missing", [WEIGHTS_FILE, BELONGS_TO_FILE])
def test_incomplete_adapter_is_refused(tmp_path: Path, missing: str) -> None:
    saved(tmp_path, Base(3, "aaa", 1))
    (tmp_path / "home" / missing).unlink()
    with pytest.raises(VersionMismatchError, match="incomplete"):
        load_adapter(tiny_lrm(), tmp_path / "home", base_sha256="aaa")


def test_adapter_of_another_shape_or_without_numbers_is_refused(tmp_path: Path) -> None:
    weights = adapter_weights(adapted(tiny_lrm(), name="home"))
    some = next(iter(weights))
    with pytest.raises(VersionMismatchError, match="does not fit"):
        adapted(tiny_lrm(), Adapter(weights | {some: torch.zeros(2, 2)}))
    weights[some][:] = float("nan")
    save_adapter(Adapter(weights), tmp_path / "home", Base(3, "aaa", 1))
    assert json.loads((tmp_path / "home" / BELONGS_TO_FILE).read_text())["model_version"] == 3
    with pytest.raises(VersionMismatchError, match="not finite"):
        load_adapter(tiny_lrm(), tmp_path / "home", base_sha256="aaa")


def test_only_the_watches_of_a_surface_are_learned_and_all_are_read() -> None:
    lrm = tiny_lrm()
    surfaces = ("home", "shorts", "home", "shorts", "music")
    watches = [new_watch(f"v{place}", surface=surface) for place, surface in enumerate(surfaces)]
    row = Behaviour(None, [SeenWatch("v9", surface="shorts")], watches)
    [example] = behaviour_examples(lrm, [row], some_videos(), surface="shorts")
    text = lrm.tokenizer.decode(list(example.token_ids), skip_special_tokens=False)
    assert text.count("home:") == 2
    assert "music:" not in text  # nothing behind it is learned
    learned = [label for label in example.labels if label != IGNORED]
    assert lrm.tokenizer.decode(learned, skip_special_tokens=False).replace(" ", "") == (
        "<a_1><b_0><c_0><d_0><a_3><b_0><c_0><d_0>"
    )
    assert behaviour_examples(lrm, [row], some_videos(), surface="search") == []

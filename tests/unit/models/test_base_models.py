from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig, GraniteForCausalLM

from infra.errors import ConfigError
from models.base_models import extended_lrm
from models.code_embeddings import SPREAD, code_embeddings
from models.lrm import SIDECAR, load_lrm, save_lrm
from tests.base_model_factories import END, base_folder, code_vectors, tiny_extended
from tests.lrm_factories import SPACE, tiny_lrm

TEXT = "a storm over <a_1><b_2><c_1><d_0> river"


@pytest.mark.parametrize("tied", [True, False])
def test_base_keeps_what_it_knew_when_codes_are_added(tmp_path: Path, tied: bool) -> None:
    folder = base_folder(tmp_path, tied=tied)
    before = AutoModelForCausalLM.from_pretrained(folder)
    lrm = extended_lrm(str(folder), SPACE, code_vectors())
    ids = torch.tensor([lrm.encode("a storm over the river")])
    known = before.config.vocab_size
    with torch.inference_mode():
        # Close, not equal: a wider head may be multiplied in another order.
        torch.testing.assert_close(lrm.model(ids).logits[..., :known], before(ids).logits)
    assert (
        AutoTokenizer.from_pretrained(folder)("a storm over the river").input_ids == ids[0].tolist()
    )
    assert lrm.model.config.vocab_size == known + sum(SPACE.level_sizes)
    head, embedding = lrm.model.get_output_embeddings(), lrm.model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied


def test_base_round_trips_with_its_own_tokens(tmp_path: Path) -> None:
    lrm = tiny_extended(tmp_path / "base")
    assert (lrm.eos_token, lrm.pad_token) == (END, END)
    sha256 = save_lrm(lrm, tmp_path / "saved")
    loaded = load_lrm(tmp_path / "saved", sha256=sha256, codebook_version=1)
    assert loaded.eos_token_id == lrm.eos_token_id == loaded.pad_token_id
    assert loaded.writes_english
    assert lrm.writes_english
    ids = torch.tensor([lrm.encode(TEXT)])
    assert torch.equal(lrm.model(ids).logits, loaded.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(TEXT).input_ids == lrm.encode(TEXT)


def test_checkpoint_that_does_not_say_what_it_began_as_is_nanos(tmp_path: Path) -> None:
    save_lrm(tiny_lrm(), tmp_path)
    sidecar = json.loads((tmp_path / SIDECAR).read_text())
    del sidecar["pad_token"], sidecar["eos_token"], sidecar["writes_english"]
    (tmp_path / SIDECAR).write_text(json.dumps(sidecar))
    loaded = load_lrm(tmp_path)
    assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "<eos>")
    assert not loaded.writes_english


def test_rows_that_the_base_has_to_spare_hold_codes_first(tmp_path: Path) -> None:
    folder = base_folder(tmp_path, spare_rows=64)
    lrm = extended_lrm(str(folder), SPACE, code_vectors())
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert lrm.model.config.vocab_size == rows
    assert int(torch.cat(lrm.level_token_ids).min()) == rows - 64


def test_base_without_an_end_token_is_refused(tmp_path: Path) -> None:
    folder = base_folder(tmp_path, eos_token=None)
    with pytest.raises(ConfigError, match="no token that ends a text: set eos_token_id"):
        extended_lrm(str(folder), SPACE, code_vectors())


def test_base_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither nano nor smollm2-135m"):
        extended_lrm(str(tmp_path / "nowhere"), SPACE, code_vectors())


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = base_folder(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        extended_lrm(str(folder), SPACE, code_vectors())


def test_model_whose_logits_are_not_its_heads_is_refused(tmp_path: Path) -> None:
    folder = base_folder(tmp_path)
    config = GraniteConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        logits_scaling=8.0,
    )
    GraniteForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="cannot be trained on packed texts"):
        extended_lrm(str(folder), SPACE, code_vectors())


def test_codes_begin_in_the_scale_of_the_base() -> None:
    known = 3.0 + 0.5 * torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    rows = code_embeddings(known, SPACE, code_vectors())
    assert rows.shape == (sum(SPACE.level_sizes), 32)
    assert abs(float(rows.mean()) - 3.0) < 0.1
    assert abs(float((rows - known.mean(dim=0)).std()) - 0.5 * SPREAD) < 0.03


@pytest.mark.parametrize("code_dim", [6, 64])
def test_codes_near_in_the_codebook_begin_near_in_the_model(code_dim: int) -> None:
    vectors = code_vectors(code_dim=code_dim)
    vectors[0][1] = vectors[0][0] + 0.01
    known = torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    rows = code_embeddings(known, SPACE, vectors)[: SPACE.codebook_sizes[0]]
    distances = torch.cdist(rows[:1], rows)[0]
    assert distances[1] < 0.1 * distances[2:].min()


def test_code_vectors_of_another_codebook_are_refused() -> None:
    with pytest.raises(ValueError, match="code vectors are for levels"):
        code_embeddings(torch.randn(9, 8), SPACE, code_vectors()[:2])

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.errors import VersionMismatchError
from models.lrm import TINY, WEIGHTS, build_lrm, load_lrm, save_lrm
from models.semantic_id import code_token
from tests.base_model_factories import code_vectors
from tests.lrm_factories import SPACE, tiny_lrm


def test_saved_lrm_loads_with_the_same_logits_and_tokens(tmp_path: Path) -> None:
    lrm = tiny_lrm()
    sha256 = save_lrm(lrm, tmp_path)
    loaded = load_lrm(tmp_path, sha256=sha256, codebook_version=1)
    ids = torch.tensor([lrm.encode("Video <a_1><b_2> has title storm")])
    assert torch.equal(lrm.model(ids).logits, loaded.model(ids).logits)
    assert loaded.space == SPACE


def test_saved_lrm_is_a_hugging_face_causal_lm(tmp_path: Path) -> None:
    lrm = tiny_lrm()
    save_lrm(lrm, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "\nhome:<a_1><b_2><c_1><d_0> 100% 60s"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == lrm.encode(text)
    assert model.num_parameters() == lrm.model.num_parameters()


def test_every_code_is_one_token() -> None:
    lrm = tiny_lrm()
    for level, size in enumerate(SPACE.level_sizes):
        for code in range(size):
            assert lrm.encode(code_token(level, code)) == [int(lrm.level_token_ids[level][code])]


def test_weights_with_another_hash_are_refused(tmp_path: Path) -> None:
    save_lrm(tiny_lrm(), tmp_path)
    with pytest.raises(VersionMismatchError, match="announced was"):
        load_lrm(tmp_path, sha256="0" * 64)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    sha256 = save_lrm(tiny_lrm(), tmp_path)
    weights = tmp_path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(VersionMismatchError):
        load_lrm(tmp_path, sha256=sha256)


def test_another_codebook_is_refused(tmp_path: Path) -> None:
    save_lrm(tiny_lrm(), tmp_path)
    with pytest.raises(VersionMismatchError, match="speaks codebook 1, live is 2"):
        load_lrm(tmp_path, codebook_version=2)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    lrm = tiny_lrm()
    with torch.no_grad():
        next(iter(lrm.model.parameters()))[0, 0] = float("nan")
    sha256 = save_lrm(lrm, tmp_path)
    with pytest.raises(VersionMismatchError, match="not finite"):
        load_lrm(tmp_path, sha256=sha256)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VersionMismatchError, match="incomplete"):
        load_lrm(tmp_path)


def test_codes_of_a_new_lrm_begin_as_far_from_each_other_as_their_code_vectors() -> None:
    vectors = code_vectors(SPACE)
    lrm = build_lrm(["User: unknown"] * 4, SPACE, config=TINY, code_vectors=vectors)
    table = lrm.model.get_input_embeddings().weight.detach()
    for vectors_KC, ids_K in zip(vectors, lrm.level_token_ids, strict=False):
        distances = torch.stack([torch.pdist(vectors_KC), torch.pdist(table[ids_K])])
        assert len(vectors_KC) < 3 or torch.corrcoef(distances)[0, 1] > 0.9

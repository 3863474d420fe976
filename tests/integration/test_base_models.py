"""The real SmolLM2 from its wheel: it loads, still speaks English, takes codes in, and survives being saved."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.base_models import SMOLLM2, extended_lrm
from models.lrm import Lrm, load_lrm, save_lrm
from models.semantic_id import code_token
from tests.base_model_factories import code_vectors
from tests.lrm_factories import SPACE

SENTENCE = "The river rises in the mountains, flows past the old town and ends in the sea."


def loss_of(lrm: Lrm, text: str) -> float:
    """Return the mean loss per token of a text, in nats."""
    ids = torch.tensor([lrm.encode(text)])
    with torch.inference_mode():
        return float(cross_entropy(lrm.model(ids).logits[0, :-1], ids[0, 1:]))


@pytest.mark.integration
@pytest.mark.long
def test_smollm2_takes_codes_in_and_keeps_its_english(tmp_path: Path) -> None:
    lrm = extended_lrm(SMOLLM2, SPACE, code_vectors())
    assert lrm.eos_token == lrm.pad_token == "<|im_end|>"
    assert len(lrm.encode(code_token(0, 3))) == 1
    loss = loss_of(lrm, SENTENCE)
    assert loss < 0.4 * math.log(lrm.tokenizer.get_vocab_size())  # what a blind guess would be
    sha256 = save_lrm(lrm, tmp_path)
    loaded = load_lrm(tmp_path, sha256=sha256)
    assert loss_of(loaded, SENTENCE) == pytest.approx(loss, rel=1e-6)
    assert loaded.encode(SENTENCE + code_token(0, 3)) == lrm.encode(SENTENCE + code_token(0, 3))

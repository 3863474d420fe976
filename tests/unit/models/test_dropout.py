from __future__ import annotations

import torch

from models.dropout import dropped_out
from tests.lrm_factories import tiny_lrm


def logits(seed: int, probability: float = 0.5) -> torch.Tensor:
    lrm = tiny_lrm()
    ids = torch.tensor([lrm.encode("home:<a_1><b_0><c_0><d_0> 100% 260s")])
    with torch.inference_mode(), dropped_out(lrm.model, probability, seed=seed):
        found: torch.Tensor = lrm.model(ids).logits
    return found


def test_same_seed_drops_the_same_and_another_does_not() -> None:
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    assert not torch.equal(logits(1), logits(1, probability=0.0))


def test_nothing_is_dropped_behind_the_context_and_no_other_chance_is_moved() -> None:
    lrm = tiny_lrm()
    ids = torch.tensor([lrm.encode("home:<a_1><b_0><c_0><d_0> 100% 260s")])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.inference_mode():
        before = lrm.model(ids).logits
        with dropped_out(lrm.model, 0.5, seed=1):
            during = lrm.model(ids).logits
        after = lrm.model(ids).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, during)
    assert torch.equal(torch.rand(1), expected)


def test_every_branch_of_every_layer_is_dropped_out() -> None:
    lrm = tiny_lrm()
    layers = lrm.model.base_model.layers
    with dropped_out(lrm.model, 0.5, seed=1):
        hooked = [len(each._forward_hooks) for each in lrm.model.modules()]
    assert sum(hooked) == 1 + 2 * len(layers)

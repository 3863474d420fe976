"""What a freshly trained model must pass before it is promoted: finite numbers, and little forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from infra.errors import GateError

ANCHOR_LOSS_RISE_MAX = 0.10
"""Of the loss that is compared with; more in one round is forgetting, not noise. Slow drift shows in the metric."""


def check_finite(losses: Sequence[float], weights: Iterable[Tensor]) -> None:
    """Check every step's loss and every weight.

    Raises:
        GateError: one is not finite.
    """
    if not all(math.isfinite(loss) for loss in losses):
        raise GateError(f"a training loss is not finite: {losses}", "finite_loss")
    if not all(bool(torch.isfinite(one).all()) for one in weights):
        raise GateError("a weight is not finite", "finite_weights")


def check_anchor_loss(loss: float, compared_with: float) -> None:
    """Check the loss on held-out rows, in nats, against the one that it must not be far above.

    Raises:
        GateError: it is more than `ANCHOR_LOSS_RISE_MAX` above it, or no number.
    """
    limit = compared_with * (1 + ANCHOR_LOSS_RISE_MAX)
    if not loss <= limit:
        raise GateError(
            f"loss on the anchor rows is {loss:.3f}, at most {limit:.3f} is allowed", "anchor_loss"
        )

"""SASRec, the self-attentive next-item model that every generative recommender must answer to.

- As in Kang & McAuley 2018 (1808.09781): item and position embeddings, causal self-attention, item vectors tied to the
  input embeddings, dropout.
- Unlike it: the loss is full-softmax cross-entropy (`models.next_item`), each block's norm comes first, and a start
  vector stands before the first item, so that an empty history has a state too.
- Items may be added at any time; what was scored before keeps its score.

Knows nothing of content: an item is its number, and one that nobody has watched is noise.

Legend: B histories, T items, N items of the catalogue, D hidden size, H heads, E size of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.next_item import NextItemModel

_INITIAL_STD = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class SasrecConfig:
    """The shape of a SASRec."""

    hidden_size: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    history_max: int = 50
    """Newest items it attends to."""
    dropout: float = 0.2
    """Of embeddings and of what each block adds."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected a number from 0 to below 1")


class Sasrec(NextItemModel):
    """Item numbers of a history -> a state that scores every item."""

    def __init__(self, config: SasrecConfig, num_items: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.history_max = config.history_max
        self.items_ND = nn.Parameter(_INITIAL_STD * torch.randn(num_items, size))
        self.start_D = nn.Parameter(_INITIAL_STD * torch.randn(size))
        self.positions_TD = nn.Parameter(_INITIAL_STD * torch.randn(config.history_max + 1, size))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(size)

    @property
    def num_items(self) -> int:  # noqa: D102
        return len(self.items_ND)

    def states(self, items_BT: Tensor) -> Tensor:  # noqa: D102
        known_BTD = self.items_ND[items_BT]
        start_B1D = self.start_D.expand(len(items_BT), 1, -1)
        entered_BTD = torch.cat([start_B1D, known_BTD], dim=1)
        # The embeddings are small because they also score; the factor is the paper's code's.
        hidden_BTD = entered_BTD * math.sqrt(self.start_D.shape[0])
        hidden_BTD = self.dropout(hidden_BTD + self.positions_TD[: entered_BTD.shape[1]])
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        normed_BTD: Tensor = self.norm(hidden_BTD)
        return normed_BTD

    def item_vectors(self) -> Tensor:  # noqa: D102
        return self.items_ND


class _Block(nn.Module):
    """Causal self-attention, then a feed-forward layer of the same width; each adds to what it was given."""

    def __init__(self, config: SasrecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(size)
        self.queries_keys_values = nn.Linear(size, 3 * size)
        self.attended = nn.Linear(size, size)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, size), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(size, size),
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the block's output; shape [B, T, D] as it came."""
        batch, length, size = hidden_BTD.shape
        three_BTD = self.queries_keys_values(self.attention_norm(hidden_BTD)).chunk(3, dim=-1)
        query_BHTE, key_BHTE, value_BHTE = (
            each.view(batch, length, self.num_heads, -1).transpose(1, 2) for each in three_BTD
        )
        mixed_BHTE = scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, is_causal=True)
        mixed_BTD = mixed_BHTE.transpose(1, 2).reshape(batch, length, size)
        hidden_BTD = hidden_BTD + self.dropout(self.attended(mixed_BTD))
        added: Tensor = hidden_BTD + self.dropout(self.feed_forward(hidden_BTD))
        return added


def build_sasrec(num_items: int, *, config: SasrecConfig | None = None, seed: int = 0) -> Sasrec:
    """Return an untrained SASRec in evaluation mode; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sasrec(config or SasrecConfig(), num_items).eval()


def add_items(
    model: Sasrec, count: int, *, optimizer: torch.optim.Adam | None = None, seed: int = 0
) -> None:
    """Append `count` new items with small random vectors; the optimizer's memory of the others is kept."""
    old = model.items_ND
    generator = torch.Generator().manual_seed(seed + len(old))
    new_ND = _INITIAL_STD * torch.randn(count, old.shape[1], generator=generator)
    grown = nn.Parameter(torch.cat([old.detach(), new_ND]))
    model.items_ND = grown
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        group["params"] = [grown if one is old else one for one in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        rows_ND = torch.zeros_like(new_ND)
        optimizer.state[grown] = {
            name: torch.cat([value, rows_ND]) if value.shape == old.shape else value
            for name, value in state.items()
        }

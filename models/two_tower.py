"""A two-tower retrieval model, as production retrieval has it, with two kinds of item tower.

- `hash`: an item's id is hashed into a table of fixed size. What nobody has watched is noise.
- `cluster`: a trainable embedding of the item's content cluster, plus its content vector mapped into the space of
  behaviour, all trained end to end: the cluster ids of M3CSR (Chen et al., RecSys 2024, doi 10.1145/3640457.3688098).
  What nobody has watched is placed beside what is like it. To tell apart what is alike, each item also has a row of the
  hashed table; it begins at zero, and learning goes without it now and then (DropoutNet, Volkovs et al., NIPS 2017), so
  that content does not leave to ids what it can say itself.

The user tower pools the item tower's vectors of the newest items, weighted by how long ago they came. Trained by full
softmax over the catalogue and ranked by `models.next_item`. Knows nothing of where ids, clusters and vectors come from.

Legend: B histories, T items, N items of the catalogue, D dimension of both towers, C of the content vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.next_item import NextItemModel

ItemTower = Literal["hash", "cluster"]
ITEM_TOWERS: tuple[ItemTower, ...] = get_args(ItemTower)
_INITIAL_STD = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoTowerConfig:
    """The shape of a two-tower model."""

    item_tower: ItemTower = "cluster"
    size: int = 64
    """Of the vectors that both towers end in."""
    hidden_size: int = 128
    """Of the mapping encoder and of the user tower."""
    history_max: int = 20
    """Newest items that are pooled."""
    hash_rows: int = 16_384
    """Of the hashed table; two items in one row are one item to it."""
    num_clusters: int = 256
    dropout: float = 0.2
    """Of what is pooled."""
    id_dropout: float = 0.2
    """Share of the items that learn without their row of the hashed table; of the tower of clusters."""

    def __post_init__(self) -> None:
        if self.item_tower not in ITEM_TOWERS:
            raise ValueError(f"item_tower is {self.item_tower!r}; expected one of {ITEM_TOWERS}")


@dataclass(frozen=True)
class ItemContents:
    """What the item towers are told of some items.

    Shapes: item_ids [N], content_NC float32, cluster_N int64.
    """

    item_ids: Sequence[str]
    content_NC: Tensor
    cluster_N: Tensor

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, rows: slice) -> ItemContents:
        return ItemContents(self.item_ids[rows], self.content_NC[rows], self.cluster_N[rows])


class TwoTower(NextItemModel):
    """Contents of a catalogue and item numbers of a history -> a state that scores every item."""

    row_N: Tensor
    content_NC: Tensor
    cluster_N: Tensor

    def __init__(self, config: TwoTowerConfig, contents: ItemContents) -> None:
        super().__init__()
        size, hidden = config.size, config.hidden_size
        self.config = config
        self.history_max = config.history_max
        self.table = nn.Embedding(config.hash_rows, size)
        if config.item_tower == "hash":
            nn.init.normal_(self.table.weight, std=_INITIAL_STD)
        else:
            nn.init.zeros_(self.table.weight)
            self.clusters = nn.Embedding(config.num_clusters, size)
            nn.init.normal_(self.clusters.weight, std=_INITIAL_STD)
            self.mapping = nn.Sequential(
                nn.Linear(contents.content_NC.shape[1], hidden), nn.GELU(), nn.Linear(hidden, size)
            )
        self.recency = nn.Parameter(-0.1 * torch.arange(config.history_max))  # log weight by age
        self.start_D = nn.Parameter(_INITIAL_STD * torch.randn(size))
        self.dropout = nn.Dropout(config.dropout)
        self.user = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))
        self.norm = nn.LayerNorm(size)
        for name in ("row_N", "content_NC", "cluster_N"):
            self.register_buffer(name, None)
        self.set_items(contents)

    def set_items(self, contents: ItemContents) -> None:
        """Put another catalogue in place of this one; weights belong to no item, so all of them stay."""
        self.row_N = self._rows(contents.item_ids)
        self.content_NC, self.cluster_N = contents.content_NC.float(), contents.cluster_N

    @property
    def num_items(self) -> int:  # noqa: D102
        return len(self.row_N)

    def add_items(self, contents: ItemContents) -> None:
        """Append items to the catalogue; no weight is added, so no optimizer needs to know."""
        before = self.row_N, self.content_NC, self.cluster_N
        self.set_items(contents)
        after = self.row_N, self.content_NC, self.cluster_N
        self.row_N, self.content_NC, self.cluster_N = (
            torch.cat(both) for both in zip(before, after, strict=True)
        )

    def item_vectors(self) -> Tensor:  # noqa: D102
        return self._vectors(self.row_N, self.content_NC, self.cluster_N)

    def vectors_of(self, contents: ItemContents) -> Tensor:
        """Return the vectors of items that need not be in the catalogue; shape [N, D]."""
        rows_N = self._rows(contents.item_ids)
        return self._vectors(rows_N, contents.content_NC.float(), contents.cluster_N)

    def _rows(self, item_ids: Sequence[str]) -> Tensor:
        rows = [_row(one, self.config.hash_rows) for one in item_ids]
        return torch.tensor(rows, dtype=torch.int64)

    def _vectors(self, row_N: Tensor, content_NC: Tensor, cluster_N: Tensor) -> Tensor:
        vectors_ND: Tensor = self.table(row_N)
        if self.config.item_tower == "hash":
            return vectors_ND
        if self.training:
            kept_N1 = torch.rand(len(row_N), 1) >= self.config.id_dropout
            vectors_ND = vectors_ND * kept_N1
        return vectors_ND + self.clusters(cluster_N) + self.mapping(content_NC)

    def states(self, items_BT: Tensor) -> Tensor:  # noqa: D102
        return self.states_of(self.item_vectors()[items_BT])

    def states_of(self, known_BTD: Tensor) -> Tensor:
        """Return the states of `states` from the vectors of the histories' items; shape [B, T + 1, D]."""
        pooled_BTD = self.dropout(self._pooling(known_BTD.shape[1]) @ known_BTD)
        hidden_BTD = pooled_BTD + self.start_D
        states_BTD: Tensor = self.norm(hidden_BTD + self.user(hidden_BTD))
        return states_BTD

    def _pooling(self, length: int) -> Tensor:
        """Return how much each state takes of each item: 0 of what came after it; rows sum to 1, the first to 0."""
        age = torch.arange(length + 1)[:, None] - torch.arange(length)[None, :] - 1
        pooled = (age >= 0) & (age < self.history_max)
        logits = self.recency[age.clamp(0, self.history_max - 1)].masked_fill(~pooled, -torch.inf)
        return torch.cat([torch.zeros(1, length), logits[1:].softmax(dim=1)])


def _row(item_id: str, rows: int) -> int:
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest()) % rows


def build_two_tower(contents: ItemContents, *, config: TwoTowerConfig, seed: int = 0) -> TwoTower:
    """Return an untrained model in evaluation mode; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TwoTower(config, contents).eval()

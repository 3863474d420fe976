"""A two-tower over a catalogue that changes while it answers; knows nothing of where the catalogue comes from.

The vector of an item follows from the item and the weights alone, so it is computed once, when the item comes, and not
in a request. A `LiveRetriever` never changes: another catalogue makes another one, which takes over what stays.

Legend: B histories, T items, N items of the catalogue, C items that came or changed, D dimension of both towers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import torch
from torch import Tensor

from models.next_item import NextItemModel, highest, rank
from models.retriever import Retriever
from models.two_tower import ItemContents, TwoTower

FIRST = 256
"""Items of a ranking that are put in order at once; each further look takes 16 times as many."""
AT_ONCE = 4096
"""Items whose vectors are computed at once: what that needs meanwhile stays below 8 MB."""


class _FixedItems(NextItemModel):
    """A two-tower with the vectors of some items at hand."""

    def __init__(self, model: TwoTower, vectors_ND: Tensor) -> None:
        super().__init__()
        self.history_max = model.history_max
        self._model, self._vectors_ND = model, vectors_ND

    @property
    def num_items(self) -> int:
        return len(self._vectors_ND)

    def item_vectors(self) -> Tensor:
        return self._vectors_ND

    def states(self, items_BT: Tensor) -> Tensor:
        return self._model.states_of(self._vectors_ND[items_BT])


@dataclass(frozen=True, eq=False)
class Ranking:
    """Items, best first; to be gone through any number of times, each as far as one likes."""

    item_ids: Sequence[str]
    scores_N: Tensor

    def __iter__(self) -> Iterator[str]:
        done, wanted = 0, FIRST
        while done < len(self.item_ids):
            best = highest(self.scores_N, wanted)
            yield from (self.item_ids[number] for number in best[done:])
            done, wanted = max(wanted, len(best)), 16 * wanted


@dataclass(frozen=True, eq=False)
class LiveRetriever:
    """Ranks one catalogue, by id; made by `live_retriever` and `with_items`, and any number of threads may ask it.

    Attributes:
        model: its weights; it has no catalogue of its own.
        item_ids: in the order in which they came.
        vectors_ND: their vectors.
    """

    model: TwoTower
    item_ids: tuple[str, ...]
    vectors_ND: Tensor

    @cached_property
    def _number_of(self) -> Mapping[str, int]:
        return dict(zip(self.item_ids, range(len(self)), strict=True))

    @cached_property
    def _ranked(self) -> _FixedItems:
        return _FixedItems(self.model, self.vectors_ND).eval()

    def __len__(self) -> int:
        return len(self.item_ids)

    def rank(
        self,
        histories: Sequence[Sequence[str]],
        *,
        top_k: int,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> list[list[str]]:
        """Return the items with the highest scores for each history, best first; as `Retriever.rank`."""
        found = rank(
            self._ranked,
            [self._numbers(history) for history in histories],
            top_k=top_k,
            excluded=None if excluded is None else [self._numbers(ids) for ids in excluded],
        )
        return [[self.item_ids[number] for number in numbers] for numbers in found]

    @torch.inference_mode()
    def ranking(self, history: Sequence[str]) -> Ranking:
        """Return all items in the order of their scores for one history, as far as it is looked at."""
        numbers = self._numbers(history)[-self.model.history_max :]
        state_D = self._ranked.states(torch.tensor([numbers], dtype=torch.int64))[0, -1]
        return Ranking(self.item_ids, self.vectors_ND @ state_D)

    def _numbers(self, item_ids: Collection[str]) -> list[int]:
        return [self._number_of[one] for one in item_ids if one in self._number_of]

    @torch.inference_mode()
    def with_items(self, changed: ItemContents, *, gone: Collection[str] = ()) -> LiveRetriever:
        """Return a retriever with some items changed or added, and some gone; their vectors are all that is computed.

        Args:
            changed: each once.
            gone: ids; those that are not here, or change as well, do not matter.
        """
        out = {*gone, *changed.item_ids}
        dropped = [self._number_of[one] for one in out if one in self._number_of]
        ids, kept_ND = self.item_ids, self.vectors_ND
        if dropped:
            kept_N = torch.ones(len(self), dtype=torch.bool)
            kept_N[dropped] = False
            ids, kept_ND = tuple(compress(ids, kept_N.tolist())), kept_ND[kept_N]
        parts_CD = [
            self.model.vectors_of(changed[start : start + AT_ONCE])
            for start in range(0, len(changed), AT_ONCE)
        ]
        found = LiveRetriever(
            self.model, (*ids, *changed.item_ids), torch.cat([kept_ND, *parts_CD])
        )
        _ = found._number_of, found._ranked  # now, and not in the first request
        return found


def live_retriever(retriever: Retriever) -> LiveRetriever:
    """Return a retriever of the same weights and items; the one at hand is emptied."""
    model = retriever.model
    contents = ItemContents(retriever.item_ids, model.content_NC, model.cluster_N)
    retriever.set_items(ItemContents([], model.content_NC[:0], model.cluster_N[:0]))
    nothing = LiveRetriever(model, (), torch.empty(0, model.config.size))
    return nothing.with_items(contents)

"""All models of a replica, each in a slot of its own that follows its pointers; knows nothing of topics, Ray and HTTP.

| pointer's model_name | goes to |
| --- | --- |
| lrm | the slot of the base, which is what makes a replica ready |
| lrm.home, …, lrm.ranking | `serve.adapters`: they join their base, in its bundle |
| two_tower_cluster, two_tower_hash | a slot each; their items follow the live catalogue |
| table | the slot of the offline table |

One thread calls `follow`, which loads; requests read. What a request takes, it keeps to its end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.storage import ObjectStore
from serve.adapters import Adapters, is_adapter
from serve.giving_way import in_turn
from serve.live_items import LiveItems
from serve.model_bundles import (
    ModelBundle,
    RetrieverBundle,
    TableBundle,
    lrm_loader,
    retriever_loader,
    table_loader,
)
from serve.model_slot import CheckpointFiles, Slot, SwapLog
from serve.model_trial import Trial
from serve.schemas import ModelState
from serve.views import CatalogueView
from streams.events import (
    LRM_MODEL_NAME,
    TABLE_MODEL_NAME,
    TWO_TOWER_CLUSTER,
    TWO_TOWER_HASH,
    CheckpointPromoted,
    SwapReported,
)

TURNS = "loading.lock"


class ModelSlots:
    """Holds the models that answer and the ones before them; one thread writes, many read."""

    def __init__(
        self,
        store: ObjectStore,
        catalogue: CatalogueView,
        *,
        replica: str,
        cache: Path,
        beam_width: int,
    ) -> None:
        """Start without a model.

        Args:
            store: holds the checkpoints.
            catalogue: whose codebook_version every model must speak, and whose videos a new model is tried on.
            replica: who reports the swaps.
            cache: folder for copies out of a remote store; replicas that share it load one at a time.
            beam_width: as requests search with.
        """
        space = catalogue.trie.view.space
        files = CheckpointFiles(store, cache, codebook_version=space.codebook_version)
        trial = Trial(catalogue, beam_width=beam_width)
        self._log = SwapLog(replica=replica)
        self._adapters = Adapters(files, trial, self._log)
        turns = cache / TURNS
        self._load_base = in_turn(lrm_loader(files, trial, space), turns)
        self._lrm = Slot(self._loaded_with_adapters, self._log)
        self._items = {name: LiveItems(catalogue) for name in (TWO_TOWER_CLUSTER, TWO_TOWER_HASH)}
        self._two_towers: dict[str, Slot[RetrieverBundle]] = {
            name: Slot(in_turn(retriever_loader(files, items), turns), self._log)
            for name, items in self._items.items()
        }
        self._tables = Slot(in_turn(table_loader(files), turns), self._log)
        self._held: list[CheckpointPromoted] = []

    @property
    def lrm(self) -> ModelBundle | None:
        """The base that answers, with its adapters; take it once per request."""
        return self._lrm.current

    @property
    def previous_lrm(self) -> ModelBundle | None:
        """The base before it with its adapters, kept for a rollback at once."""
        return self._lrm.previous

    def two_tower(self, name: str) -> RetrieverBundle | None:
        """Return the two-tower of this model_name; take it once per request."""
        return self._two_towers[name].current

    @property
    def table(self) -> TableBundle | None:
        """The offline table; take it once per request."""
        return self._tables.current

    def states(self) -> dict[str, ModelState]:
        """Return which versions there are of each model that has been here, by model_name."""
        found = {
            name: ModelState(
                model_version=slot.current.model_version if slot.current else 0,
                previous_version=slot.previous.model_version if slot.previous else 0,
            )
            for name, slot in self._slots().items()
            if slot.current or slot.previous
        }
        current, previous = _adapter_versions(self.lrm), _adapter_versions(self.previous_lrm)
        for name in sorted({*current, *previous}):
            found[name] = ModelState(
                model_version=current.get(name, 0), previous_version=previous.get(name, 0)
            )
        return found

    @property
    def swaps(self) -> int:
        """Swaps so far, of all models."""
        return self._log.swaps

    @property
    def rejected_swaps(self) -> int:
        """Checkpoints rejected so far, of all models."""
        return self._log.rejected_swaps

    def follow(self, pointers: Sequence[CheckpointPromoted]) -> list[SwapReported]:
        """Serve the last good pointer of each model; pointers of unknown models are passed over.

        To be called without pointers, too: what could not be had is tried again, and items are brought up to date. The
        LRM comes first, as it is what most wait for.

        Delivery: a replica that dies here reads the same pointers again.
        """
        by_name: defaultdict[str, list[CheckpointPromoted]] = defaultdict(list)
        for promoted in pointers:
            by_name[promoted.model_name].append(promoted)
            if is_adapter(promoted.model_name):
                self._adapters.take(promoted)
        reports = self._follow_lrm(by_name[LRM_MODEL_NAME])
        for name, slot in self._slots().items():
            if slot is not self._lrm:
                reports += slot.follow(by_name[name])
        self._refresh_items()
        return reports

    def _slots(self) -> dict[str, Slot[Any]]:
        return {LRM_MODEL_NAME: self._lrm, **self._two_towers, TABLE_MODEL_NAME: self._tables}

    def _follow_lrm(self, pointers: Sequence[CheckpointPromoted]) -> list[SwapReported]:
        reports = self._lrm.follow(self._due(pointers))
        for bundle in (self._lrm.current, self._lrm.previous):
            if bundle is not None:
                self._lrm.replace(bundle, self._adapters.joined(bundle, self._lrm.current))
        return [*reports, *self._adapters.reports()]

    def _due(self, pointers: Sequence[CheckpointPromoted]) -> list[CheckpointPromoted]:
        """Return the pointers of bases to be followed now.

        A base is announced just before its adapters. Where the one that serves has some, the next one waits a call for
        its own, so that no surface is answered by the bare base in between.
        """
        held, self._held = self._held, []
        if pointers and not held and self._would_lose_adapters(pointers[-1]):
            self._held = list(pointers)
            return []
        return [*held, *pointers]

    def _would_lose_adapters(self, promoted: CheckpointPromoted) -> bool:
        current = self._lrm.current
        if current is None or self._lrm.holds(promoted):
            return False
        return not set(current.adapters) <= self._adapters.known(promoted.sha256)

    def _loaded_with_adapters(self, promoted: CheckpointPromoted) -> ModelBundle:
        return self._adapters.joined(self._load_base(promoted), self._lrm.current)

    def _refresh_items(self) -> None:
        for name, slot in self._two_towers.items():
            bundle, items = slot.current, self._items[name]
            if bundle is not None and items.due(bundle.known):
                retriever, known = items.brought_up_to_date(bundle.retriever, bundle.known)
                slot.replace(bundle, replace(bundle, retriever=retriever, known=known))


def _adapter_versions(bundle: ModelBundle | None) -> dict[str, int]:
    pointers = bundle.adapter_pointers.values() if bundle else ()
    return {promoted.model_name: promoted.model_version for promoted in pointers}

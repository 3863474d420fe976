"""What one answer needs of a model, for each kind of model, and how that is loaded; knows nothing of swaps and topics.

| bundle | model_name | is |
| --- | --- | --- |
| `ModelBundle` | lrm, and lrm.<surface> beside it | a base with its adapters, in one |
| `RetrieverBundle` | two_tower_cluster, two_tower_hash | a two-tower, and what it knew of the catalogue |
| `TableBundle` | table | answers that were computed ahead |

Nothing is kept between requests that depends on a model (no prefix cache), so nothing can be of another version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from infra.errors import VersionMismatchError
from models.live_retriever import LiveRetriever, Ranking, live_retriever
from models.lrm import Lrm, load_lrm
from models.offline_table import OfflineTable, load_table
from models.retriever import load_retriever
from models.semantic_id import SemanticIdSpace
from serve.live_items import KnownItems, LiveItems, has_content
from serve.model_slot import CheckpointFiles
from serve.model_trial import Trial, check_ranking
from streams.events import CheckpointPromoted

RANKING = "ranking"
"""Name of the adapter that rates candidates; the others are named for the surface that they search for."""


def _nothing() -> Mapping[str, Lrm]:
    return MappingProxyType({})


def _no_pointers() -> Mapping[str, CheckpointPromoted]:
    return MappingProxyType({})


@dataclass(frozen=True)
class ModelBundle:
    """A base and the adapters on top of it, which share its weights; immutable.

    Attributes:
        adapters: by name, without the base's; a name may be missing at any time.
        adapter_pointers: what announced each.
    """

    lrm: Lrm
    model_version: int
    sha256: str
    adapters: Mapping[str, Lrm] = field(default_factory=_nothing)
    adapter_pointers: Mapping[str, CheckpointPromoted] = field(default_factory=_no_pointers)

    def for_surface(self, surface: str) -> Lrm:
        """Return what searches for a surface: its adapter, or the base where there is none."""
        return self.adapters.get(surface, self.lrm)

    @property
    def ranking(self) -> Lrm | None:
        """What rates candidates; a base without that adapter never learned to."""
        return self.adapters.get(RANKING)


@dataclass(frozen=True)
class RetrieverBundle:
    """A two-tower that ranks what was live when it was last told; immutable."""

    retriever: LiveRetriever
    model_version: int
    sha256: str
    known: KnownItems

    def ranked(self, history: Sequence[str]) -> Ranking:
        """Return all items, best first, to be gone through until enough may be shown."""
        return self.retriever.ranking(history)


@dataclass(frozen=True)
class TableBundle:
    """An offline table; immutable."""

    table: OfflineTable
    model_version: int
    sha256: str


def lrm_loader(
    files: CheckpointFiles, trial: Trial, space: SemanticIdSpace
) -> Callable[[CheckpointPromoted], ModelBundle]:
    """Return what loads and tries a base, still without adapters."""

    def load(promoted: CheckpointPromoted) -> ModelBundle:
        lrm = load_lrm(
            files.folder_of(promoted),
            sha256=promoted.sha256,
            codebook_version=files.codebook_version,
        )
        if lrm.space != space:
            raise VersionMismatchError(
                f"checkpoint {promoted.path} speaks {lrm.space}, live is {space}"
            )
        trial.search(lrm, ["home", "watch_next"])
        return ModelBundle(lrm, promoted.model_version, promoted.sha256)

    return load


def retriever_loader(
    files: CheckpointFiles, items: LiveItems
) -> Callable[[CheckpointPromoted], RetrieverBundle]:
    """Return what loads a two-tower, tries it on the videos that it was trained on, and gives it the live ones."""

    def load(promoted: CheckpointPromoted) -> RetrieverBundle:
        retriever = load_retriever(
            files.folder_of(promoted),
            sha256=promoted.sha256,
            codebook_version=files.codebook_version,
        )
        of_training = live_retriever(retriever)
        check_ranking(of_training)
        live, known = items.brought_up_to_date(of_training, KnownItems())
        check_ranking(live)
        if not len(live) and any(map(has_content, known.videos.values())):
            raise VersionMismatchError(
                f"checkpoint {promoted.path} can rank none of {len(known.videos)} live videos: their content vectors "
                "are of another dimension, or their clusters of another number"
            )
        return RetrieverBundle(live, promoted.model_version, promoted.sha256, known)

    return load


def table_loader(files: CheckpointFiles) -> Callable[[CheckpointPromoted], TableBundle]:
    """Return what loads an offline table."""

    def load(promoted: CheckpointPromoted) -> TableBundle:
        table = load_table(
            files.folder_of(promoted),
            sha256=promoted.sha256,
            codebook_version=files.codebook_version,
        )
        return TableBundle(table, promoted.model_version, promoted.sha256)

    return load

"""A two-tower with the ids of its items: what a retrieval arm loads and asks; knows nothing of training.

A saved retriever is a folder of two files: model.safetensors holds the weights and what the item towers are told of
each item, two_tower.json the config, the items' ids in the order of their numbers, and the codebook that the contents
are of. The weights name the hash of the other file, so that one announced hash vouches for both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from hashlib import sha256 as sha256_hash
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infra.errors import VersionMismatchError
from infra.storage import sha256_of
from models.next_item import rank
from models.two_tower import ItemContents, TwoTower, TwoTowerConfig, build_two_tower

WEIGHTS = "model.safetensors"
SIDECAR = "two_tower.json"
_CONTENT, _CLUSTER = "content_NC", "cluster_N"
_HASHED_ROWS = "row_N"  # follows from the ids


class Retriever:
    """Ranks a catalogue, by id; only `set_items` and training change it."""

    def __init__(self, model: TwoTower, item_ids: Sequence[str], *, codebook_version: int) -> None:
        self.model = model
        self.codebook_version = codebook_version
        self._number(item_ids)

    def _number(self, item_ids: Sequence[str]) -> None:
        self.item_ids = tuple(item_ids)
        self._number_of = {item_id: number for number, item_id in enumerate(self.item_ids)}

    def set_items(self, contents: ItemContents) -> None:
        """Put another catalogue in place of this one; weights belong to no item, so all of them stay."""
        self.model.set_items(contents)
        self._number(contents.item_ids)

    def __contains__(self, item_id: object) -> bool:
        """Return whether it is in the catalogue."""
        return item_id in self._number_of

    def numbers(self, item_ids: Sequence[str]) -> list[int]:
        """Return the numbers of those that are in the catalogue."""
        return [self._number_of[one] for one in item_ids if one in self._number_of]

    def rank(
        self,
        histories: Sequence[Sequence[str]],
        *,
        top_k: int,
        excluded: Sequence[Collection[str]] | None = None,
    ) -> list[list[str]]:
        """Return the items with the highest scores for each history, best first.

        Args:
            histories: ids in time order; one may be empty, and ids that are not in the catalogue are passed over.
            top_k: items wanted; there are fewer where fewer are not excluded.
            excluded: per history, ids that must not be returned, such as what was watched or has been removed since.
        """
        found = rank(
            self.model,
            [self.numbers(history) for history in histories],
            top_k=top_k,
            excluded=None if excluded is None else [self.numbers(tuple(ids)) for ids in excluded],
        )
        return [[self.item_ids[number] for number in numbers] for numbers in found]


def build_retriever(
    contents: ItemContents, *, config: TwoTowerConfig, codebook_version: int, seed: int = 0
) -> Retriever:
    """Return an untrained retriever; the same seed gives the same weights."""
    model = build_two_tower(contents, config=config, seed=seed)
    return Retriever(model, contents.item_ids, codebook_version=codebook_version)


def save_retriever(retriever: Retriever, directory: Path) -> str:
    """Write the retriever into an existing or new folder and return its weights' sha256; not atomic by itself."""
    directory.mkdir(parents=True, exist_ok=True)
    sidecar = {
        "config": asdict(retriever.model.config),
        "codebook_version": retriever.codebook_version,
        "item_ids": retriever.item_ids,
    }
    data = json.dumps(sidecar).encode()
    (directory / SIDECAR).write_bytes(data)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in retriever.model.state_dict().items()
        if name != _HASHED_ROWS
    }
    save_file(
        tensors, directory / WEIGHTS, metadata={f"{SIDECAR}.sha256": sha256_hash(data).hexdigest()}
    )
    return sha256_of(directory / WEIGHTS)


def load_retriever(
    directory: Path, *, sha256: str | None = None, codebook_version: int | None = None
) -> Retriever:
    """Load what `save_retriever` wrote, in evaluation mode, its hash checked before anything is read.

    Args:
        directory: of a checkpoint.
        sha256: as it was announced.
        codebook_version: that its contents must be of.

    Raises:
        VersionMismatchError: the folder is incomplete, a hash differs, a weight is not finite, the contents are of
            another codebook, or the weights of an earlier two-tower.
    """
    try:
        found = sha256_of(directory / WEIGHTS)
        data = (directory / SIDECAR).read_bytes()
        if sha256 is not None and found != sha256:
            raise VersionMismatchError(
                f"checkpoint {directory.name} has weights {found}, announced was {sha256}"
            )
        tensors, named = _read(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise VersionMismatchError(f"checkpoint {directory.name} is incomplete: {error}") from error
    if (actual := sha256_hash(data).hexdigest()) != named:
        raise VersionMismatchError(
            f"{directory.name}/{SIDECAR} has sha256 {actual}, its weights name {named}"
        )
    sidecar = json.loads(data)
    if codebook_version is not None and sidecar["codebook_version"] != codebook_version:
        raise VersionMismatchError(
            f"checkpoint {directory.name} is of codebook {sidecar['codebook_version']}, live is {codebook_version}"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise VersionMismatchError(f"checkpoint {directory.name} has weights that are not finite")
    contents = ItemContents(sidecar["item_ids"], tensors.pop(_CONTENT), tensors.pop(_CLUSTER))
    retriever = build_retriever(
        contents,
        config=TwoTowerConfig(**sidecar["config"]),
        codebook_version=sidecar["codebook_version"],
    )
    try:
        retriever.model.load_state_dict(tensors | _buffers(retriever.model))
    except RuntimeError as error:
        raise VersionMismatchError(
            f"checkpoint {directory.name} is of an earlier two-tower, fit it anew (freshet bootstrap): {error}"
        ) from error
    return retriever


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors, and the hash that they name of the other file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors, (file.metadata() or {}).get(f"{SIDECAR}.sha256")


def _buffers(model: TwoTower) -> dict[str, Tensor]:
    return dict(model.named_buffers())

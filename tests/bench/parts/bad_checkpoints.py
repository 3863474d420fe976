"""Checkpoints that must never serve, each spoiled in one way; knows nothing of who is to refuse them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from infra.storage import sha256_of
from models.lrm import SIDECAR, WEIGHTS
from streams.events import CheckpointPromoted

Spoil = Callable[[CheckpointPromoted, Path], CheckpointPromoted]


def corrupt(promoted: CheckpointPromoted, store: Path) -> CheckpointPromoted:
    """Flip a byte in the middle of the weights."""
    path = store / promoted.path / WEIGHTS
    weights = bytearray(path.read_bytes())
    weights[len(weights) // 2] ^= 0xFF
    path.write_bytes(weights)
    return promoted


def truncated(promoted: CheckpointPromoted, store: Path) -> CheckpointPromoted:
    """Cut the weights in half, and announce the hash of what is left: as one does who hashes too early."""
    path = store / promoted.path / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return promoted.model_copy(update={"sha256": sha256_of(path)})


def of_another_codebook(promoted: CheckpointPromoted, store: Path) -> CheckpointPromoted:
    """Let the checkpoint itself speak the next codebook, while its announcement says nothing of that."""
    path = store / promoted.path / SIDECAR
    sidecar = json.loads(path.read_text())
    sidecar["space"]["codebook_version"] += 1
    path.write_text(json.dumps(sidecar))
    return promoted


def announced_for_another_codebook(promoted: CheckpointPromoted, store: Path) -> CheckpointPromoted:
    """Let the announcement speak the next codebook, and not the checkpoint."""
    return promoted.model_copy(update={"codebook_version": promoted.codebook_version + 1})


def not_finite(promoted: CheckpointPromoted, store: Path) -> CheckpointPromoted:
    """Make one weight not a number, and announce the hash of that."""
    path = store / promoted.path / WEIGHTS
    weights = load_file(path)
    weights[min(weights)].view(-1)[0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    return promoted.model_copy(update={"sha256": sha256_of(path)})


def missing(promoted: CheckpointPromoted, store: Path) -> CheckpointPromoted:
    """Announce a folder that is not there."""
    return promoted.model_copy(update={"path": f"{promoted.path}-gone"})


SPOILED: dict[str, Spoil] = {
    "corrupt": corrupt,
    "truncated": truncated,
    "of another codebook": of_another_codebook,
    "announced for another codebook": announced_for_another_codebook,
    "not finite": not_finite,
    "missing": missing,
}

"""Everything the training loop must not lose, as one folder: weights, optimizer, random state, replay, positions.

    <store>/checkpoints/<model name>/000007/
        config.json model.safetensors tokenizer.json lrm.json    what serving loads
        optimizer.safetensors reservoir.parquet watch_counts.json state.json      what the next round needs as well
        base_lora.safetensors     and this, where low-rank adapters learn: the half of them that folding leaves
        adapters/home/ …          and these, one for each adapter that stays beside the base (`models.surface_adapters`)
    <store>/checkpoints/<model name>/plan.json    what the round after the newest checkpoint takes, once it has begun

The files are written first and state.json last: it names their hashes, and without it there is no checkpoint. The
number is the model_version. Knows nothing of Kafka and Ray.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from infra.errors import VersionMismatchError
from infra.storage import ObjectStore, sha256_of
from models.base_lora import adapter_tensors, restore_adapters
from models.lrm import Lrm, load_lrm, save_lrm
from models.surface_adapters import Adapter, Base, read_adapter, save_adapter
from models.training import (
    TrainingConfig,
    make_optimizer,
    optimizer_tensors,
    prepare,
    restore_optimizer,
)
from streams.shards import ShardRow, read_shard, write_shard
from workers.replay import Reservoir, without

CHECKPOINTS_KEY = "checkpoints"
STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
BASE_LORA_FILE = "base_lora.safetensors"
ADAPTERS_FOLDER = "adapters"
RESERVOIR_FILE = "reservoir.parquet"
COUNTS_FILE = "watch_counts.json"
PLAN_FILE = "plan.json"


@dataclass
class Positions:
    """What has been learned from: the next offset of each partition of the topics that training consumes.

    Of impressions a window, as they wait for their user's next watch; empty where no adapter learns from them.
    """

    next_shard_offset: int = 0
    next_semantic_id_offsets: dict[int, int] = field(default_factory=dict)
    first_impression_offsets: dict[int, int] = field(default_factory=dict)
    next_impression_offsets: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a round takes, written down before it begins: a loop that dies and starts again takes the same.

    Attributes:
        model_version: of the checkpoint that the round will make.
        positions: up to which it learns.
        row_share: of the shards' rows that are learned; below 1 where the loop is behind.
    """

    model_version: int
    positions: Positions
    row_share: float = 1.0


@dataclass(kw_only=True)
class RoundState:
    """What a round moves forward beside the model, of whatever kind that is.

    Attributes:
        anchor_rows: held out of all training; their loss shows forgetting.
        watch_counts: of each live video, how many of its watches were learned.
    """

    reservoir: Reservoir
    positions: Positions
    rng: random.Random
    model_version: int = 0
    steps: int = 0
    anchor_rows: list[ShardRow] = field(default_factory=list)
    anchor_loss: float = float("inf")
    newest_event_time_ms: int = 0
    watch_counts: Counter[str] = field(default_factory=Counter)

    def forget(self, videos: Container[str], users: Container[str]) -> None:
        """Drop what is held of videos that are not among these, and of these users."""
        self.reservoir.forget(videos, users)
        self.anchor_rows = without(self.anchor_rows, videos, users)
        for video_id in [each for each in self.watch_counts if each not in videos]:
            del self.watch_counts[video_id]

    def count(self, rows: Iterable[ShardRow]) -> None:
        """Take in rows that were learned just now."""
        for row in rows:
            self.reservoir.add(row, self.rng)
            for watch in row.watches:
                self.newest_event_time_ms = max(self.newest_event_time_ms, watch.event_time_ms)
                self.watch_counts[watch.video_id] += 1


@dataclass(kw_only=True)
class TrainingState(RoundState):
    """The mutable whole that a round of the LRM moves forward.

    Attributes:
        adapters: that stay beside the base, by name.
    """

    lrm: Lrm
    config: TrainingConfig
    optimizer: torch.optim.AdamW
    adapters: dict[str, Adapter] = field(default_factory=dict)


def new_state(
    lrm: Lrm, config: TrainingConfig, *, seed: int, reservoir_rows: int = 2000
) -> TrainingState:
    """Return the state before any training; the LRM at hand becomes its own."""
    prepare(lrm, config, seed=seed)
    return TrainingState(
        lrm=lrm,
        config=config,
        optimizer=make_optimizer(lrm, config),
        reservoir=Reservoir(reservoir_rows),
        positions=Positions(),
        rng=random.Random(seed),
    )


def checkpoint_key(model_name: str, model_version: int) -> str:
    """Return where a checkpoint is in the object store."""
    return f"{CHECKPOINTS_KEY}/{model_name}/{model_version:06d}"


def adapter_path(name: str) -> str:
    """Return where an adapter is in its base's checkpoint."""
    return f"{ADAPTERS_FOLDER}/{name}"


def checkpoint_versions(store: ObjectStore, model_name: str) -> list[int]:
    """Return the versions of all complete checkpoints, ascending; state.json is what completes one."""
    prefix = f"{CHECKPOINTS_KEY}/{model_name}"
    found = [key.split("/") for key in store.list(prefix)]
    return sorted(
        int(parts[-2]) for parts in found if parts[-1] == STATE_FILE and parts[-2].isdigit()
    )


def save_state(
    state: TrainingState,
    store: ObjectStore,
    model_name: str,
    *,
    scratch: Path,
    record: dict[str, Any],
) -> str:
    """Write the state as checkpoint `model_version` and return its weights' sha256.

    `record` goes into state.json: what was measured, and what the announcement will say.

    Delivery: killed before the last step, there is no such checkpoint and the round is repeated from the one before.
    """
    folder = empty_folder(state, store, model_name, scratch)
    notes = {"training": asdict(state.config), "steps": state.steps}
    sha256 = save_lrm(state.lrm, folder, notes=notes)
    save_file(optimizer_tensors(state.lrm.model, state.optimizer), folder / OPTIMIZER_FILE)
    if adapters := adapter_tensors(state.lrm.model):
        save_file(adapters, folder / BASE_LORA_FILE)
    base = Base(state.model_version, sha256, state.lrm.space.codebook_version)
    for name, adapter in state.adapters.items():
        save_adapter(adapter, folder / adapter_path(name), base)
    document = {
        "codebook_version": state.lrm.space.codebook_version,
        "config": asdict(state.config),
        "sha256": sha256,
        "record": record,
    }
    complete_checkpoint(state, folder, document, store, model_name)
    return sha256


def empty_folder(state: RoundState, store: ObjectStore, model_name: str, scratch: Path) -> Path:
    """Return where a checkpoint's files can be written, after removing what an earlier attempt at it has left."""
    store.remove(
        checkpoint_key(model_name, state.model_version)
    )  # of a killed round, or one without room
    folder = scratch / f"{model_name}-{state.model_version:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def complete_checkpoint(
    state: RoundState, folder: Path, document: dict[str, Any], store: ObjectStore, model_name: str
) -> None:
    """Put the model's files in `folder` into the store, and with them the rest of the state; `folder` goes.

    `document` is what state.json says of the model; the rest of it is added here.

    Delivery: killed before the last step, there is no such checkpoint and the round is repeated from the one before.
    """
    (folder / RESERVOIR_FILE).write_bytes(write_shard([*state.anchor_rows, *state.reservoir.rows]))
    (folder / COUNTS_FILE).write_text(json.dumps(state.watch_counts))
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    version, internal, gauss = state.rng.getstate()
    document = document | {
        "model_version": state.model_version,
        "steps": state.steps,
        "positions": asdict(state.positions),
        "rng": [version, list(internal), gauss],
        "anchor_rows": len(state.anchor_rows),
        "anchor_loss": state.anchor_loss,
        "reservoir": {
            name: getattr(state.reservoir, name)
            for name in ("capacity", "seen", "vacant", "vacant_outside")
        },
        "newest_event_time_ms": state.newest_event_time_ms,
        "files": files,
    }
    key = checkpoint_key(model_name, state.model_version)
    store.put_directory(key, folder)  # Step 1: the files
    store.put_bytes(
        f"{key}/{STATE_FILE}", json.dumps(document).encode()
    )  # Step 2: what completes them
    shutil.rmtree(folder)


def read_record(store: ObjectStore, model_name: str, model_version: int) -> dict[str, Any]:
    """Return a checkpoint's state.json; its `record` is what `save_state` was told to keep."""
    key = f"{checkpoint_key(model_name, model_version)}/{STATE_FILE}"
    record: dict[str, Any] = json.loads(store.get_bytes(key))
    return record


def load_positions(store: ObjectStore, model_name: str, model_version: int) -> Positions:
    """Return what a checkpoint has learned from, without loading it."""
    return _positions(read_record(store, model_name, model_version))


def _positions(document: dict[str, Any]) -> Positions:
    found = document["positions"]
    by_partition = (
        {int(at): to for at, to in found.get(name, {}).items()}  # older ones know no impressions
        for name in (
            "next_semantic_id_offsets", "first_impression_offsets", "next_impression_offsets",
        )
    )  # fmt: skip
    return Positions(found["next_shard_offset"], *by_partition)


def load_state(
    store: ObjectStore, model_name: str, model_version: int, *, cache: Path
) -> TrainingState:
    """Return the state as it was saved, every file's hash checked first; raises like `open_checkpoint`."""
    document, folder = open_checkpoint(store, model_name, model_version, cache=cache)
    lrm = load_lrm(folder, sha256=document["sha256"])
    config = TrainingConfig(**({"dropout": 0.0} | document["config"]))  # the oldest had none
    prepare(lrm, config)
    if config.adapter_rank:
        restore_adapters(lrm.model, load_file(folder / BASE_LORA_FILE))
    optimizer = make_optimizer(lrm, config)
    restore_optimizer(lrm.model, optimizer, load_file(folder / OPTIMIZER_FILE))
    return TrainingState(
        lrm=lrm,
        config=config,
        optimizer=optimizer,
        adapters={
            path.name: read_adapter(path) for path in sorted((folder / ADAPTERS_FOLDER).glob("*"))
        },
        **round_state_of(document, folder),
    )


def open_checkpoint(
    store: ObjectStore, model_name: str, model_version: int, *, cache: Path
) -> tuple[dict[str, Any], Path]:
    """Return a checkpoint's state.json and a local folder with its files, their hashes checked.

    Raises:
        VersionMismatchError: a file is not the one that was saved.
        TransientError: there is no such checkpoint.
    """
    key = checkpoint_key(model_name, model_version)
    document = json.loads(store.get_bytes(f"{key}/{STATE_FILE}"))
    folder = store.local_directory(key, cache)
    for name, expected in document["files"].items():
        found = sha256_of(folder / name) if (folder / name).is_file() else "no file"
        if found != expected:
            raise VersionMismatchError(
                f"{key}/{name} has sha256 {found}, state.json says {expected}"
            )
    return document, folder


def round_state_of(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of a `RoundState` by name, as a checkpoint has them."""
    rows = read_shard((folder / RESERVOIR_FILE).read_bytes())
    num_anchors = document["anchor_rows"]
    rng = random.Random()
    version, internal, gauss = document["rng"]
    rng.setstate((version, tuple(internal), gauss))
    return {
        "reservoir": Reservoir(rows=rows[num_anchors:], **document["reservoir"]),
        "positions": _positions(document),
        "rng": rng,
        "model_version": document["model_version"],
        "steps": document["steps"],
        "anchor_rows": rows[:num_anchors],
        "anchor_loss": document["anchor_loss"],
        "newest_event_time_ms": document["newest_event_time_ms"],
        "watch_counts": _watch_counts(folder / COUNTS_FILE),
    }


def _watch_counts(path: Path) -> Counter[str]:
    """Return what a checkpoint says; those of earlier releases say nothing."""
    return Counter(json.loads(path.read_bytes())) if path.is_file() else Counter()


def save_plan(store: ObjectStore, model_name: str, plan: Plan) -> None:
    """Write down what the next round takes, in place of the plan before."""
    store.put_bytes(_plan_key(model_name), json.dumps(asdict(plan)).encode())


def load_plan(store: ObjectStore, model_name: str, model_version: int) -> Plan | None:
    """Return what a round is to take that was begun and has not made its checkpoint; None if there is none such."""
    key = _plan_key(model_name)
    if not store.exists(key):
        return None
    document = json.loads(store.get_bytes(key))
    if document["model_version"] != model_version:
        return None
    return Plan(model_version, _positions(document), document["row_share"])


def _plan_key(model_name: str) -> str:
    return f"{CHECKPOINTS_KEY}/{model_name}/{PLAN_FILE}"

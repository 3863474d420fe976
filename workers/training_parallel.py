"""A round's steps on several Ray Train workers, each of which computes its part of every step's gradient.

Data parallel: every worker loads the newest checkpoint, takes its share of the blocks of a step, adds up gradients with
the others and steps as they do. So the result is that of one process, but for the order in which numbers are added and
for what is dropped out, which each draws for itself.
To start a group of workers takes a quarter of a minute and more, which a round of a small model is not worth.

Delivery: what the workers made is reported by the first of them, whole or not at all. When one dies, all begin again
from the same checkpoint and the same blocks, at most `DEATHS_MAX` times. They end with the process that called them,
however that dies; what Ray had set aside for them is free again when its job ends.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when a run begins. Its watcher of nodes that are about to go is a process more: a run that dies is run again.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

import ray
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import (
    Checkpoint,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    get_context,
    report,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from safetensors.torch import load_file, save_file

from infra.errors import TransientError
from infra.storage import ObjectStore
from models.examples import Block
from models.training import Part, optimizer_tensors, restore_optimizer, train_on
from workers.training_actor import BEHIND_SERVING
from workers.training_state import TrainingState, load_state

DEATHS_MAX = 2
WORKER_CPUS = 0.1  # what Ray sets aside; as with replicas, the operator says how many fit
RUNS_KEY = "training_runs"
WEIGHTS_FILE, OPTIMIZER_FILE = "weights.safetensors", "optimizer.safetensors"
LOSSES_FILE = "losses.json"


@dataclass(frozen=True)
class ParallelTraining:
    """Trains as `workers.training_round.train_alone` does, on several workers.

    Attributes:
        store_root: of the object store, which every node sees; a local folder's path is absolute.
        model_name: whose checkpoints are there.
        workers: processes, each on a GPU where the cluster has as many.
        threads: of PyTorch, in each of them.
    """

    store_root: str
    model_name: str
    workers: int
    threads: int

    def __call__(self, state: TrainingState, blocks: Sequence[Block]) -> list[float]:
        """Make one pass over the blocks from the checkpoint that the state was loaded from; return each step's loss.

        Raises:
            TransientError: workers died more than `DEATHS_MAX` times; the state's weights are as before.
        """
        if not blocks:
            return []
        store, key = ObjectStore(self.store_root), f"{RUNS_KEY}/{self.model_name}"
        store.remove(key)  # or Ray would go on with what a killed round has left
        try:
            result = self._trainer(store, key, state.model_version, blocks).fit()
            with result.checkpoint.as_directory() as folder:
                return _take_over(state, Path(folder))
        except TrainingFailedError as error:
            raise TransientError(
                f"{self.workers} training workers did not finish a round, {DEATHS_MAX + 1} times in a row: {error}"
            ) from error
        finally:
            store.remove(key)

    def _trainer(
        self, store: ObjectStore, key: str, model_version: int, blocks: Sequence[Block]
    ) -> TorchTrainer:
        on_gpus = ray.cluster_resources().get("GPU", 0) >= self.workers
        filesystem, path = store.filesystem_and_path(key)
        return _Trainer(
            _work,
            train_loop_config={
                "training": self,
                "model_version": model_version,
                "blocks": list(blocks),
            },
            torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.workers,
                use_gpu=on_gpus,
                resources_per_worker={"CPU": WORKER_CPUS} | ({"GPU": 1} if on_gpus else {}),
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(
                name=f"round-{model_version + 1:06d}",
                storage_path=path,
                storage_filesystem=PyFileSystem(FSSpecHandler(filesystem)),
                failure_config=FailureConfig(
                    max_failures=DEATHS_MAX, controller_failure_limit=DEATHS_MAX
                ),
            ),
        )


class _Trainer(TorchTrainer):
    """Without a helper of Ray's that asks the dashboard every second, and outlives the run where there is none."""

    def _create_default_callbacks(self) -> list[Any]:
        return [
            each
            for each in super()._create_default_callbacks()
            if not isinstance(each, PlacementGroupCleanerCallback)
        ]


def _work(given: dict[str, Any]) -> None:
    """Be one worker."""
    os.nice(BEHIND_SERVING)
    training: ParallelTraining = given["training"]
    torch.set_num_threads(training.threads)
    part = Part(get_context().get_world_rank(), get_context().get_world_size())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = ObjectStore(training.store_root)
        state = load_state(
            store, training.model_name, given["model_version"], cache=folder / "cache"
        )
        losses = train_on(
            state.lrm,
            state.optimizer,
            given["blocks"],
            state.config,
            part=part,
            seed=state.steps,
        )
        if part.rank > 0:
            report({})
            return
        made = folder / "made"
        made.mkdir()
        learned = {key: each.detach() for key, each in state.lrm.model.named_parameters()}
        save_file(learned, made / WEIGHTS_FILE)
        save_file(optimizer_tensors(state.lrm.model, state.optimizer), made / OPTIMIZER_FILE)
        (made / LOSSES_FILE).write_text(json.dumps(losses))
        report({}, checkpoint=Checkpoint.from_directory(made))


@torch.no_grad()
def _take_over(state: TrainingState, folder: Path) -> list[float]:
    """Put what the workers made into the state and return each step's loss."""
    weights = load_file(folder / WEIGHTS_FILE)
    for name, parameter in state.lrm.model.named_parameters():
        parameter.copy_(weights[name])
    restore_optimizer(state.lrm.model, state.optimizer, load_file(folder / OPTIMIZER_FILE))
    losses: list[float] = json.loads((folder / LOSSES_FILE).read_bytes())
    return losses

"""The searches of a table build as batch inference on Ray Data: one actor that loads the LRM once.

Knows nothing of which rows are asked for, and why.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray

from infra.storage import ObjectStore
from models.lrm import load_lrm
from models.related import Question, Related, related_videos
from models.semantic_id import SemanticIdSpace
from models.trie import LiveTrie

BATCH = 16
"""Questions searched together: wider is no faster on a core."""
BLOCK = 4 * BATCH
"""Questions that Ray Data hands over together: a step of the progress."""
NICENESS = 15
"""Behind answers, and behind training as well, which is waited for."""
NONE = -1

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SearchTask:
    """What the actor is told once.

    Attributes:
        store_root: of the object store; the LRM is at `path` in it, with this hash of its weights.
        cache: folder for copies out of a remote store.
        video_ids: of the live videos, aligned with semantic_ids_VL and upload_times_ms_V.
    """

    store_root: str
    path: str
    sha256: str
    cache: Path
    space: SemanticIdSpace
    video_ids: Sequence[str]
    semantic_ids_VL: NDArray[np.int64]
    upload_times_ms_V: NDArray[np.int64]
    top_k: int
    beam_width: int


class RelatedSearch:
    """What `map_batches` calls: rows of (video, prompt) in, numbers and log-probs of their related videos out."""

    def __init__(self, told: ray.ObjectRef) -> None:
        os.nice(NICENESS)
        torch.set_num_threads(1)
        task: SearchTask = ray.get(told)
        self._task = task
        folder = ObjectStore(task.store_root).local_directory(task.path, task.cache)
        self._lrm = load_lrm(
            folder, sha256=task.sha256, codebook_version=task.space.codebook_version
        )
        self._number_of = {video_id: number for number, video_id in enumerate(task.video_ids)}
        trie = LiveTrie(task.space)
        trie.insert_many(task.semantic_ids_VL, task.video_ids, task.upload_times_ms_V)
        self._view = trie.view

    def __call__(self, batch: Batch) -> Batch:
        """Search for one batch."""
        contexts = list(zip(batch["video_id"].tolist(), batch["prompt"].tolist(), strict=True))
        task = self._task
        found = related_videos(
            self._lrm, contexts, self._view, top_k=task.top_k, beam_width=task.beam_width
        )
        numbers = np.full((len(contexts), task.top_k), NONE, dtype=np.int64)
        log_probs = np.zeros(numbers.shape, dtype=np.float32)
        for row, related in enumerate(found):
            numbers[row, : len(related)] = [self._number_of[video_id] for video_id, _ in related]
            log_probs[row, : len(related)] = [log_prob for _, log_prob in related]
        return {"video_id": batch["video_id"], "related": numbers, "log_prob": log_probs}


def search(
    questions: Sequence[Question], task: SearchTask, *, on_progress: Callable[[int], None]
) -> dict[str, Related]:
    """Return each question's answer, by video; `on_progress` is told how many there are so far.

    Blocks: for the whole search; what runs on the cluster ends with this process.
    """
    if not questions:
        return {}
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours says the same, once
    context.print_on_execution_start = False
    rows = [{"video_id": one.video_id, "prompt": one.prompt} for one in questions]
    batches = (
        ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / BLOCK))
        .map_batches(
            RelatedSearch,
            fn_constructor_args=(ray.put(task),),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0,  # as for training: the cores are the replicas', who go first
        )
        .iter_batches(batch_size=None, batch_format="numpy")
    )
    answers: dict[str, Related] = {}
    for batch in batches:
        answers.update(_answers(batch, task.video_ids))
        on_progress(len(answers))
    return answers


def _answers(batch: Batch, video_ids: Sequence[str]) -> Iterator[tuple[str, Related]]:
    for video_id, numbers, log_probs in zip(
        batch["video_id"].tolist(), batch["related"], batch["log_prob"], strict=True
    ):
        found = numbers != NONE
        related = [video_ids[number] for number in numbers[found]]
        yield video_id, list(zip(related, log_probs[found].tolist(), strict=True))

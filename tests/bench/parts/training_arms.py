"""The same training by us and by Hugging Face's Trainer, a part of the examples at a time.

An arm keeps its model and optimizer from part to part, so that arms can take turns and a machine that slows down slows
all of them. Knows nothing of where the examples come from and of what is compared.
"""

from __future__ import annotations

import copy
import math
import random
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from models.examples import IGNORED, Block, Example, collate, pack
from models.lrm import Lrm
from models.training import TrainingConfig, initial_learning_rate, make_optimizer, train_on
from models.vocabulary import EOS, PAD

Features = dict[str, list[int]]
Inputs = dict[str, Tensor]


class Clock:
    """Seconds, and CPU-seconds of the process, from start to stop."""

    seconds = cpu_seconds = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._started, self._started_cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Count until now."""
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = time.process_time() - self._started_cpu


class Arm(ABC):
    """One way to train a copy of a model, and what every part took: seconds, and CPU-seconds of the process."""

    def __init__(self, lrm: Lrm, config: TrainingConfig, *, num_steps: int, seed: int) -> None:
        self.lrm = copy.deepcopy(lrm)
        self.config = config
        self.optimizer = make_optimizer(self.lrm, config)
        self.num_steps = num_steps
        self.steps_done = 0
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._rng = random.Random(seed)

    @abstractmethod
    def train(self, examples: Sequence[Example]) -> None:
        """Go on with these examples."""

    def took(self, clock: Clock) -> None:
        """Take down what a part took."""
        self.seconds.append(clock.seconds)
        self.cpu_seconds.append(clock.cpu_seconds)

    def rate(self, step: int) -> float:
        """Return the learning rate at a step of all parts together."""
        return initial_learning_rate(self.config, step, self.num_steps)


class OurArm(Arm):
    """`models.training` over `models.examples.pack`; the packing counts."""

    def train(self, examples: Sequence[Example]) -> None:
        clock = Clock()
        clock.start()
        blocks = pack(examples, block_tokens=self.config.block_tokens, rng=self._rng)
        losses = train_on(
            self.lrm,
            self.optimizer,
            blocks,
            self.config,
            learning_rate=lambda step, _: self.rate(self.steps_done + step),
        )
        clock.stop()
        self.took(clock)
        self.steps_done += len(losses)


class TrainerArm(Arm):
    """The Trainer; its clock runs while it trains, and not while it is set up anew for a part."""

    def __init__(self, lrm: Lrm, config: TrainingConfig, *, num_steps: int, seed: int) -> None:
        super().__init__(lrm, config, num_steps=num_steps, seed=seed)
        peak = config.round_learning_rate  # what `make_optimizer` has set, and LambdaLR multiplies
        self._schedule = LambdaLR(self.optimizer, lambda step: self.rate(step) / peak)

    def _fit(
        self,
        items: Sequence[Any],
        collator: Callable[[list[Any]], Any],
        batch_size: int,
        sampling: str,
    ) -> None:
        clock = _TrainerClock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                train_sampling_strategy=sampling,
                num_train_epochs=1,
                max_grad_norm=self.config.gradient_norm_max,
                seed=self._rng.randrange(2**31),
                use_cpu=True,
                remove_unused_columns=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = Trainer(
                model=self.lrm.model,
                args=arguments,
                train_dataset=_Items(items),
                data_collator=collator,
                optimizers=(self.optimizer, self._schedule),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        self.took(clock)
        self.steps_done += math.ceil(len(items) / batch_size)


class PaddedTrainerArm(TrainerArm):
    """As its documentation has it: examples of about one length in a batch, padded to the longest by a collator.

    A batch has as many examples as our step has on average, so that both make equally many steps. `products` is the
    context in which everything is computed.
    """

    def __init__(
        self,
        lrm: Lrm,
        config: TrainingConfig,
        *,
        num_steps: int,
        seed: int,
        batch_size: int,
        products: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(lrm, config, num_steps=num_steps, seed=seed)
        self._batch_size = batch_size
        self._products = products
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=lrm.tokenizer, pad_token=PAD, eos_token=EOS, padding_side="right"
        )
        self._collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)

    def train(self, examples: Sequence[Example]) -> None:
        items = [self._features(example) for example in examples]
        with self._products():
            self._fit(items, self._collator, self._batch_size, "group_by_length")

    def _features(self, example: Example) -> Features:
        """Return the same tokens and labels that `pack` would take."""
        newest = slice(-self.config.block_tokens, None)
        token_ids, labels = example.token_ids[newest], example.labels[newest]
        return {"input_ids": list(token_ids), "labels": list(labels)}


class PackedTrainerArm(TrainerArm):
    """The Trainer on our blocks, with their mask and position ids."""

    def train(self, examples: Sequence[Example]) -> None:
        blocks = pack(examples, block_tokens=self.config.block_tokens, rng=self._rng)
        self._fit(blocks, self._collated, self.config.blocks_per_step, "random")

    def _collated(self, blocks: list[Block]) -> Inputs:
        batch = collate(blocks, pad_token_id=self.lrm.pad_token_id)
        return {
            "input_ids": batch.token_ids_BT,
            "labels": batch.labels_BT,
            "position_ids": batch.position_ids_BT,
            "attention_mask": batch.mask_B1TT,
        }


class _Items(Dataset[Any]):
    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


class _TrainerClock(TrainerCallback, Clock):
    """Runs from a training's first step to its end."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.stop()

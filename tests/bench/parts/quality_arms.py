"""The models that are compared on films, each behind the same three verbs: prepare, rank, learn.

Knows nothing of how targets are drawn and of what is made of the ranks.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from infra.errors import GateError
from models.next_item import (
    NextItemTraining,
    Window,
    make_optimizer,
    rank,
    sliding_windows,
    train_pass,
)
from models.prompts import Ask
from models.recommend import Request, recommend
from models.sasrec import Sasrec, add_items
from models.tasks import Recipe
from models.training import optimizer_tensors, restore_optimizer
from models.trie_filters import Filters
from models.two_tower import TwoTower
from tests.bench.parts.quality_stream import Round, Stream, Target
from workers.training_round import RoundInput, RoundLimits, Train, run_round, train_alone
from workers.training_state import TrainingState

TOP_K = 10
BEAM_WIDTH = 20
RANK_BATCH = 16


class Arm(Protocol):
    """One model in the stream."""

    name: str

    def rank(self, targets: Sequence[Target], this: Round) -> list[list[int]]:
        """Return the numbers of the first ten items for each target, best first."""

    def learn(self, this: Round) -> None:
        """Take in the round's watches."""


class LrmArm:
    """The LRM, refreshed by the project's own rounds, or left as it is.

    Attributes:
        refused: rounds that a gate refused; the weights from before them went on, as in the training actor.
        cpu_s: spent on learning.
    """

    def __init__(
        self,
        name: str,
        state: TrainingState,
        stream: Stream,
        *,
        is_frozen: bool = False,
        recipe: Recipe | None = None,
        replay_share: float = 0.25,
        train: Train = train_alone,
    ) -> None:
        self.name, self._state, self._stream, self._train = name, state, stream, train
        self._is_frozen = is_frozen
        self._limits = RoundLimits(replay_share, evaluate_max=0, recipe=recipe or Recipe())
        self._num_learned = stream.catalogue.num_live(stream.watched_at_ms(stream.num_first - 1))
        self.refused, self.cpu_s = 0, 0.0

    def rank(self, targets: Sequence[Target], this: Round) -> list[list[int]]:
        catalogue = self._stream.catalogue
        found: list[list[int]] = []
        for start in range(0, len(targets), RANK_BATCH):
            batch = targets[start : start + RANK_BATCH]
            ranked = recommend(
                self._state.lrm,
                [self._request(target, this) for target in batch],
                this.view,
                catalogue.videos,
                top_k=TOP_K,
                beam_width=BEAM_WIDTH,
            )
            found += [[catalogue.number_of[one.video_id] for one in each] for each in ranked]
        return found

    def _request(self, target: Target, this: Round) -> Request:
        watches = self._stream.by_user[target.user_id]
        wanted, before = watches[target.index], watches[: target.index]
        not_yet = self._stream.catalogue.video_ids[target.num_live : this.num_known]
        return Request(
            viewer=None,
            watches=before,
            ask=Ask(wanted.surface, wanted.context_video_id, wanted.query),
            filters=Filters(excluded_video_ids={watch.video_id for watch in before}.union(not_yet)),
        )

    def learn(self, this: Round) -> None:
        if self._is_frozen:
            return
        catalogue = self._stream.catalogue
        known = list(catalogue.video_ids[: this.num_known])
        videos = {video_id: catalogue.videos[video_id] for video_id in known}
        new = [videos[one] for one in known[self._num_learned :]]
        self._num_learned = this.num_known
        state, started = self._state, time.process_time()
        weights = {name: each.clone() for name, each in state.lrm.model.state_dict().items()}
        moments, loss = optimizer_tensors(state.lrm.model, state.optimizer), state.anchor_loss
        try:
            run_round(state, RoundInput(this.rows, new, videos), self._limits, train=self._train)
        except GateError:
            self.refused += 1
            state.lrm.model.load_state_dict(weights)
            restore_optimizer(state.lrm.model, state.optimizer, moments)
            state.anchor_loss = loss
        self.cpu_s += time.process_time() - started


class NextItemArm:
    """SASRec or a two-tower; a refresh is some passes over the new watches and as many old ones, drawn at random."""

    def __init__(
        self,
        name: str,
        model: Sasrec | TwoTower,
        stream: Stream,
        *,
        training: NextItemTraining,
        passes: int,
        seed: int,
    ) -> None:
        self.name, self.model, self.training = name, model, training
        self.optimizer = make_optimizer(model, training)
        self._stream, self._passes, self._rng = stream, passes, random.Random(seed)
        self.windows = self._first_windows()
        self.cpu_s = 0.0

    def _first_windows(self) -> list[Window]:
        counts = Counter(user for user, _ in self._stream.order[: self._stream.num_first])
        return [
            window
            for user, count in counts.items()
            for window in sliding_windows(
                self._stream.numbers[user][:count], history_max=self.model.history_max
            )
        ]

    def rank(self, targets: Sequence[Target], this: Round) -> list[list[int]]:
        self._grow(this.num_known)
        histories = [self._stream.numbers[one.user_id][: one.index] for one in targets]
        return rank(
            self.model,
            histories,
            top_k=TOP_K,
            excluded=[set(history) for history in histories],
            num_live=[target.num_live for target in targets],
        )

    def _grow(self, num_known: int) -> None:
        """Take in what was uploaded in the meantime."""
        before = self.model.num_items
        if isinstance(self.model, Sasrec):
            add_items(self.model, num_known - before, optimizer=self.optimizer)
        else:
            self.model.add_items(self._stream.catalogue.contents[before:num_known])

    def learn(self, this: Round) -> None:
        started = time.process_time()
        number_of = self._stream.catalogue.number_of
        new: list[Window] = []
        for row in this.rows:
            items = [number_of[watch.video_id] for watch in (*row.history, *row.watches)]
            new += sliding_windows(
                items, first_new=len(row.history), history_max=self.model.history_max
            )
        for _ in range(self._passes):
            old = self._rng.sample(self.windows, min(len(new), len(self.windows)))
            train_pass(self.model, self.optimizer, new + old, self.training, rng=self._rng)
        self.windows += new
        self.cpu_s += time.process_time() - started


class PopularityArm:
    """The most watched items among the newest `newest` watches, those of the round itself not yet counted."""

    def __init__(self, name: str, stream: Stream, *, newest: int, start: int) -> None:
        self.name, self._stream = name, stream
        self._window = deque(
            (stream.numbers[user][index] for user, index in stream.order[:start]), maxlen=newest
        )

    def rank(self, targets: Sequence[Target], this: Round) -> list[list[int]]:
        counts_N = np.bincount(np.array(self._window), minlength=len(self._stream.catalogue))
        found = []
        for target in targets:
            left_N = counts_N[: target.num_live].astype(float)
            left_N[self._stream.numbers[target.user_id][: target.index]] = -1
            best = np.argsort(-left_N, kind="stable")[:TOP_K]
            found.append([int(number) for number in best if left_N[number] >= 0])
        return found

    def learn(self, this: Round) -> None:
        number_of = self._stream.catalogue.number_of
        new = sorted(
            (watch for row in this.rows for watch in row.watches),
            key=lambda watch: watch.event_time_ms,
        )
        self._window.extend(number_of[watch.video_id] for watch in new)

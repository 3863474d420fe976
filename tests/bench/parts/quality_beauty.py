"""Amazon Beauty, leave-one-out: SASRec with cross-entropy and the nano LRM, given the same CPU-seconds.

The protocol of TIGER (Rajput et al. 2023, sec. 4) and its successors: of each user's items, in time order, the last is
the test item, the one before it the validation item, all earlier ones are learned from, every one as a next item; the
ranking is over all items. One thing is added for both models: what the user has reviewed already is left out, as no
item is reviewed twice. Validation chooses how long to train; the test items are ranked once, at the end.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from models.evaluation import ndcg_at_k, recall_at_k
from models.examples import (
    Behaviour,
    Block,
    behaviour_examples,
    describe_texts,
    pack,
    text_examples,
)
from models.lrm import NANO, Lrm, build_lrm
from models.next_item import NextItemTraining, make_optimizer, rank, sliding_windows
from models.prompts import Ask
from models.recommend import Request, recommend
from models.sasrec import Sasrec, SasrecConfig, build_sasrec
from models.tasks import Recipe, video_texts
from models.training import TrainingConfig
from models.training import make_optimizer as make_lrm_optimizer
from models.trie_filters import Filters
from streams.shards import NewWatch
from tests.bench.parts.cpu_training import CpuBudget, in_steps, train_lrm, train_next_item
from tests.bench.parts.quality_budget import Budget
from tests.bench.parts.quality_data import Catalogue

TOP_K = 10
BEAM_WIDTH = 20
RANK_BATCH = 32
METADATA_SHARE = 0.1
SASREC = SasrecConfig(hidden_size=64, num_blocks=2, num_heads=2, history_max=20, dropout=0.3)
SASREC_TRAINING = NextItemTraining(peak_learning_rate=2e-3, round_learning_rate=1e-4)
LRM_TRAINING = TrainingConfig()

Rankings = list[list[str]]


@dataclass(frozen=True)
class Split:
    """The users of a leave-one-out split; `by_user` holds all watches of each, in time order."""

    catalogue: Catalogue
    by_user: dict[str, list[NewWatch]]

    def drawn(self, count: int, seed: int) -> list[str]:
        """Return some users, or all where `count` is 0."""
        users = list(self.by_user)
        return users if not count else random.Random(seed).sample(users, min(count, len(users)))

    def targets(self, users: Sequence[str], *, held_out: int) -> list[str]:
        """Return each user's item that is `held_out` from the end: 1 the test's, 2 the validation's."""
        return [self.by_user[user][-held_out].video_id for user in users]


@dataclass(frozen=True)
class Scores:
    """A model's figures on the test items.

    Attributes:
        cpu_s: of training.
        best_share: of that, when the validation items were ranked best.
        validation: recall@10 on the validation items at each check.
    """

    name: str
    recall_at_5: float
    ndcg_at_5: float
    recall_at_10: float
    ndcg_at_10: float
    targets: int
    cpu_s: float
    best_share: float
    validation: tuple[float, ...]


class SasrecOnBeauty:
    """SASRec by full-softmax cross-entropy."""

    name = "SASRec-CE"

    def __init__(self, split: Split, seed: int) -> None:
        self._split, self._rng = split, random.Random(seed)
        self.model: Sasrec = build_sasrec(len(split.catalogue), config=SASREC, seed=seed)
        self._optimizer = make_optimizer(self.model, SASREC_TRAINING)
        self._windows = [
            window
            for user in split.by_user
            for window in sliding_windows(self._numbers(user, 2), history_max=SASREC.history_max)
        ]

    def _numbers(self, user: str, held_out: int) -> list[int]:
        number_of = self._split.catalogue.number_of
        return [number_of[watch.video_id] for watch in self._split.by_user[user][:-held_out]]

    def train(self, budget: CpuBudget, until_share: float) -> None:
        """Go on until that share of the budget is spent."""
        train_next_item(
            self.model, self._optimizer, self._windows, SASREC_TRAINING, budget,
            rng=self._rng, until_share=until_share,
        )  # fmt: skip

    def rank(self, users: Sequence[str], *, held_out: int) -> Rankings:
        """Return the first ten items of each user, knowing all but the last `held_out`."""
        histories = [self._numbers(user, held_out) for user in users]
        found = rank(self.model, histories, top_k=TOP_K, excluded=[set(one) for one in histories])
        return [[self._split.catalogue.video_ids[number] for number in one] for one in found]


class LrmOnBeauty:
    """The nano LRM: texts of every position, some metadata, constrained beam search."""

    name = "nano LRM"

    def __init__(self, split: Split, seed: int) -> None:
        self._split, videos = split, split.catalogue.videos
        self._lrm: Lrm = build_lrm(
            _texts(split),
            split.catalogue.space,
            config=NANO,
            code_vectors=split.catalogue.code_vectors,
            seed=seed,
        )
        self.model = self._lrm.model
        self._optimizer = make_lrm_optimizer(self._lrm, LRM_TRAINING)
        rows = [Behaviour(None, [], watches[:-2]) for watches in split.by_user.values()]
        behaviour = behaviour_examples(self._lrm, rows, videos)
        rng = random.Random(seed)
        metadata = text_examples(self._lrm, video_texts(videos.values(), Recipe(), rng))

        def epochs() -> Iterator[list[Block]]:
            while True:
                drawn = rng.sample(metadata, round(METADATA_SHARE * len(metadata)))
                yield pack(behaviour + drawn, block_tokens=LRM_TRAINING.block_tokens, rng=rng)

        self._blocks = in_steps(epochs(), LRM_TRAINING)
        self._view = split.catalogue.view(len(split.catalogue))

    def train(self, budget: CpuBudget, until_share: float) -> None:
        """Go on until that share of the budget is spent."""
        train_lrm(
            self._lrm, self._optimizer, self._blocks, LRM_TRAINING, budget, until_share=until_share
        )

    def rank(self, users: Sequence[str], *, held_out: int) -> Rankings:
        """Return the first ten items of each user, knowing all but the last `held_out`."""
        found: Rankings = []
        for start in range(0, len(users), RANK_BATCH):
            known = [
                self._split.by_user[user][:-held_out] for user in users[start : start + RANK_BATCH]
            ]
            requests = [
                Request(
                    viewer=None,
                    watches=watches,
                    ask=Ask("home"),
                    filters=Filters(excluded_video_ids={watch.video_id for watch in watches}),
                )
                for watches in known
            ]
            ranked = recommend(
                self._lrm, requests, self._view, self._split.catalogue.videos,
                top_k=TOP_K, beam_width=BEAM_WIDTH,
            )  # fmt: skip
            found += [[candidate.video_id for candidate in one] for one in ranked]
        return found


def _texts(split: Split) -> Iterator[str]:
    """Yield what the BPE is learned from: the catalogue's words, and the line of a watch."""
    yield from describe_texts(split.catalogue.videos.values())
    for video in split.catalogue.videos.values():
        yield f"User: unknown\nWatch history:\nhome: {video.channel} 100% 600s"


def compare(split: Split, budget: Budget, *, seed: int, say: Callable[[str], None]) -> list[Scores]:
    """Train both models for the same CPU-seconds and return their figures on the same test users."""
    validation = split.drawn(budget.beauty_validation, seed + 1)
    tested = split.drawn(budget.beauty_targets, seed + 2)
    return [
        _scored(SasrecOnBeauty(split, seed), split, validation, tested, budget, say),
        _scored(LrmOnBeauty(split, seed), split, validation, tested, budget, say),
    ]


def _scored(
    model: SasrecOnBeauty | LrmOnBeauty,
    split: Split,
    validation: Sequence[str],
    tested: Sequence[str],
    budget: Budget,
    say: Callable[[str], None],
) -> Scores:
    cpu, checks = CpuBudget(budget.beauty_cpu_s), budget.beauty_checks
    wanted = split.targets(validation, held_out=2)
    found: list[float] = []
    best = copy.deepcopy(model.model.state_dict())
    for check in range(1, checks + 1):
        model.train(cpu, check / checks)
        found.append(recall_at_k(model.rank(validation, held_out=2), wanted))
        say(f"beauty: {model.name} at {check}/{checks}, validation recall@10 {found[-1]:.4f}")
        if found[-1] == max(found):
            best = copy.deepcopy(model.model.state_dict())
    model.model.load_state_dict(best)
    ranked, targets = model.rank(tested, held_out=1), split.targets(tested, held_out=1)
    return Scores(
        model.name,
        recall_at_k(ranked, targets, 5),
        ndcg_at_k(ranked, targets, 5),
        recall_at_k(ranked, targets, 10),
        ndcg_at_k(ranked, targets, 10),
        len(tested),
        cpu.spent_s,
        (1 + max(range(checks), key=lambda at: (found[at], at))) / checks,
        tuple(found),
    )

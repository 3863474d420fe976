"""How rounds should learn: learning rate, replay, passes, dropout, weight averaging and recipe, one changed at a time.

MovieLens in time order: one first fit on the earlier half of the watches, then the next tenth in rounds, each scored
before it is learned. The part that `make bench NAME=quality` streams comes later and chooses nothing here. What is
compared is the loss per new watch, in nats, which is surer than recall@10: every watch counts, and by how much it was
missed. The table is kept in `tests/bench/tables/ablation.md`. `BENCH_SCALE=0.1` tries it on a tenth of the data.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infra.provenance import provenance
from infra.settings import Settings, load_settings
from infra.storage import write_atomically
from models.examples import Block
from models.tasks import Recipe
from models.training import TrainingConfig, train_on
from streams import movielens
from streams.timeline import Timeline, split
from tests.bench.measure import Measure, measured
from tests.bench.parts.quality_arms import LrmArm
from tests.bench.parts.quality_budget import Budget, budget_of
from tests.bench.parts.quality_data import coded, encode
from tests.bench.parts.quality_figures import Asked, Figure, recall
from tests.bench.parts.quality_films import FIT_MAX_S, HISTORIES_ONLY, answered, first_fit
from tests.bench.parts.quality_stream import Stream, rounds, stream_of
from tests.bench.parts.quality_tables import origin, table
from tests.bench.quality import say
from workers.bootstrap_lrm import BootstrapConfig
from workers.training_round import loss_on
from workers.training_state import TrainingState

TABLE = Path(__file__).parent / "tables" / "ablation.md"
FIRST_SHARE, LAST_SHARE = 0.5, 0.6
EPOCHS = 6
AVERAGE_DECAY = 0.99
CHOSEN = "as chosen"
HALF_TEXT = Recipe(masked=1.0, intent=1.0, related=1.0)  # PLUM's even mix, about


@dataclass(frozen=True)
class Variant:
    """One way of learning a round; what is not named is as chosen."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    replay_share: float = 0.25
    recipe: Recipe = field(default_factory=Recipe)
    passes: int = 1
    average: float = 0.0


VARIANTS = (
    Variant(CHOSEN),
    Variant("learning rate 1.5e-4", {"round_learning_rate": 1.5e-4}),
    Variant("learning rate 3e-4", {"round_learning_rate": 3e-4}),
    Variant("learning rate 1.2e-3", {"round_learning_rate": 1.2e-3}),
    Variant("no replay", replay_share=0.0),
    Variant("half replay", replay_share=0.5),
    Variant("two passes", passes=2),
    Variant("no dropout in rounds", {"dropout": 0.0}),
    Variant(f"weights averaged over steps, decay {AVERAGE_DECAY}", average=AVERAGE_DECAY),
    Variant("histories only, no texts", recipe=HISTORIES_ONLY),
    Variant("about as many tokens of texts as of histories", recipe=HALF_TEXT),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a variant: nats per new watch over all rounds, recall@10, CPU-seconds of learning."""

    variant: Variant
    nats: float
    recall: Figure
    cpu_s: float


def measure() -> list[Measure]:
    """Fit once, run every variant from there, keep the table, return the measures."""
    torch.set_num_threads(1)
    settings = load_settings()
    budget = budget_of("cpu", float(os.environ.get("BENCH_SCALE", "1")))
    stream, end = _stream(settings, budget)
    say("ablation: first fit")
    fitted = first_fit(stream, BootstrapConfig(epochs=EPOCHS, fit_max_s=FIT_MAX_S), settings)
    outcomes = []
    for variant in VARIANTS:
        found = run_variant(variant, stream, end, copy.deepcopy(fitted), budget, seed=settings.seed)
        say(f"ablation: {variant.name}: {found.nats:.3f} nats, recall@10 {found.recall.mean:.4f}")
        outcomes.append(found)
    write_atomically(TABLE, page(outcomes, stream, end, budget).encode())
    return measures(outcomes)


def _stream(settings: Settings, budget: Budget) -> tuple[Stream, int]:
    timeline = movielens.load_timeline()
    timeline = Timeline(timeline.events[: round(budget.data_share * len(timeline.events))])
    earlier, later = split(timeline, FIRST_SHARE)
    say("ablation: encode, and fit a codebook")
    folder = settings.var_dir / "bench" / "quality" / "ablation"
    encoded, digest = encode(earlier, later, settings, folder)
    catalogue = coded(encoded, digest, steps=budget.quantizer_steps, seed=settings.seed)
    stream = stream_of(catalogue, timeline, len(earlier.watches()))
    return stream, round(LAST_SHARE * len(stream.order))


def run_variant(
    variant: Variant, stream: Stream, end: int, state: TrainingState, budget: Budget, *, seed: int
) -> Outcome:
    """Stream the rounds past a state, which changes, and return what was measured."""
    state.config = replace(state.config, **variant.config)
    average = _Average(variant.average)

    def train(state: TrainingState, blocks: Sequence[Block]) -> list[float]:
        losses: list[float] = []
        for number in range(variant.passes):
            losses += train_on(
                state.lrm,
                state.optimizer,
                blocks,
                state.config,
                seed=state.steps + number,
                on_step=lambda *_: average.follow(state.lrm.model),
            )
        return losses

    arm = LrmArm(
        variant.name, state, stream,
        recipe=variant.recipe, replay_share=variant.replay_share, train=train,
    )  # fmt: skip
    found: list[Asked] = []
    nats = num_watches = 0.0
    for this in rounds(
        stream, start=stream.num_first, end=end, size=budget.round_watches,
        per_stratum=budget.targets_per_stratum, seed=seed,
    ):  # fmt: skip
        num_new = sum(len(row.watches) for row in this.rows)
        with average.put_on(state.lrm.model):
            loss = loss_on(state, this.rows, stream.catalogue.videos)
            found += answered(this, [arm])
        nats += num_new * stream.catalogue.space.num_levels * loss
        num_watches += num_new
        arm.learn(this)
    return Outcome(variant, nats / num_watches, recall(found, variant.name), arm.cpu_s)


class _Average:
    """An exponential moving average of weights; with a decay of 0, the weights themselves."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        for name, weight in model.named_parameters() if self._decay else ():
            if name in self._weights:
                self._weights[name].lerp_(weight, 1 - self._decay)
            else:
                self._weights[name] = weight.clone()

    @contextmanager
    def put_on(self, model: nn.Module) -> Iterator[None]:
        """Have the model be the average within the context."""
        own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        model.load_state_dict(self._weights, strict=False)
        yield
        model.load_state_dict(own, strict=False)


def measures(outcomes: Sequence[Outcome]) -> list[Measure]:
    """Return the loss as chosen and of the best variant, and what chosen costs in CPU-seconds."""
    chosen = next(one for one in outcomes if one.variant.name == CHOSEN)
    best = min(outcomes, key=lambda one: one.nats)
    return [
        Measure(
            measure="chosen_nats_per_watch",
            value=chosen.nats,
            unit="nats",
            higher_is_better=False,
            peer=f"the best variant: {best.variant.name}",
            peer_value=best.nats,
        ),
        measured("chosen_recall_at_10", chosen.recall.mean, "share", more=True),
        measured("chosen_round_cpu_s", chosen.cpu_s, "CPU-seconds of all rounds"),
    ]


def page(outcomes: Sequence[Outcome], stream: Stream, end: int, budget: Budget) -> str:
    """Return the table as Markdown."""
    scaled = ""
    if budget.data_share != 1:
        scaled = f" **A quick try on {budget.data_share:.0%} of the data.**"
    rows = [
        (
            one.variant.name,
            f"{one.nats:.3f}",
            f"{one.recall.mean:.4f} ±{one.recall.error:.4f}",
            f"{one.cpu_s:.0f}",
        )
        for one in outcomes
    ]
    config = TrainingConfig()
    return (
        f"# Ablation of rounds\n\nWritten by `make bench NAME=ablation`.{scaled} MovieLens ml-latest-small in time "
        f"order, one seed: a first fit of {EPOCHS} epochs on {stream.num_first:,} watches, then those up to "
        f"{end:,} in rounds of {budget.round_watches:,}, each scored before it is learned. As chosen is learning rate "
        f"{config.round_learning_rate:g}, a quarter of replay, one pass, dropout {config.dropout:g}, no averaging, the "
        "default recipe; every other row changes what it names. Nats per new watch are the mean loss over the "
        "semantic ID of every new watch, unwatched videos among them; recall@10 is over a sample, with its standard "
        f"error.\n\n{origin(provenance(), 'one core')}\n\n"
        + table(("variant", "nats per new watch", "recall@10", "CPU-seconds of all rounds"), rows)
        + "\n"
    )

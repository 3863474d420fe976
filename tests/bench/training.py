"""Training: tokens per second beside Hugging Face's Trainer, FLOPs utilisation, and a shard's way to a checkpoint.

One run on one machine. A nano LRM learns the same texts of MovieLens with the same optimizer settings and threads by
each arm, the arms in turns, so that all of them meet the same disturbances:

- ours: packed blocks by `models.training`;
- the Trainer as its documentation has it: examples of about one length in a batch, padded by a collator;
- the same with the library that computes our matrix products, where that is not torch's default;
- the Trainer on our packed blocks.

Every arm has the same tokens, and losses on rows held out tell whether one learned more from them than ours: if not,
rates compare as times to equal loss do, or to our disadvantage. Then the state that we trained goes on in rounds of the
real training loop. `BENCH_SCALE=0.05` makes everything smaller, to try it; figures mean something at 1 only, which
takes some ten minutes.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from infra.settings import load_settings
from models.examples import Example, behaviour_examples, pack, text_examples, watch_text_examples
from models.lrm import Lrm, build_lrm
from models.tasks import video_texts
from models.training import TrainingConfig, evaluate_loss
from models.training_kernels import fast_products
from streams.shards import ShardRow
from tests.bench.measure import Measure, measured, measured_over
from tests.bench.parts.marks import say
from tests.bench.parts.model_flops import matmul_peak_flops_per_s, training_flops
from tests.bench.parts.movielens_rows import SPACE, MovieLensRows, movielens_rows
from tests.bench.parts.training_arms import Arm, OurArm, PackedTrainerArm, PaddedTrainerArm
from tests.bench.parts.training_rounds import PARTS, Round, in_shards, timed_rounds
from workers.bootstrap_lrm import ANCHOR_ROWS, BootstrapConfig, texts_of
from workers.training_actor import Video
from workers.training_round import behaviours, loss_on
from workers.training_state import new_state

ROWS_SHARE = 0.4  # of the past: half a million tokens, enough that the loss says something
HELD_OUT_ROWS = 200
TURNS = 5
WARM_UP_EXAMPLES = 50
LOSS_TOLERANCE = 0.02  # of the loss
SHARD_WATCHES, SHARDS_WARM_UP, SHARDS_MEASURED = 2_000, 1, 5
TRAINER = "HF Trainer"
FAST_TRAINER = "HF Trainer, our library"
PACKED_TRAINER = "HF Trainer, packed"


@dataclass(frozen=True)
class Lesson:
    """What every arm starts from and learns.

    Attributes:
        num_tokens: of all examples, as they are trained on.
        num_steps: that our arm makes.
    """

    lrm: Lrm
    config: TrainingConfig
    videos: Mapping[str, Video]
    rows: Sequence[ShardRow]
    held_out: Sequence[ShardRow]
    examples: Sequence[Example]
    num_tokens: int
    num_steps: int


class Rate(NamedTuple):
    """Of one arm in one turn; CPU-seconds are less disturbed by what else a machine does."""

    tokens_per_s: float
    tokens_per_cpu_s: float


@dataclass(frozen=True)
class Run:
    """Everything that was measured.

    Attributes:
        rates: of each arm by turn.
        losses: of each arm on the rows held out, at the end.
    """

    threads: int
    rates: Mapping[str, Sequence[Rate]]
    losses: Mapping[str, float]
    flops_per_token: float
    peak_flops_per_s: float
    rounds: Sequence[Round]


def measure() -> list[Measure]:
    """Train by each arm in turns, then go on in rounds."""
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    settings = load_settings()
    threads = settings.training.threads
    torch.set_num_threads(threads)
    data = movielens_rows(settings.seed)
    lesson = lesson_of(data, scale=scale, seed=settings.seed)
    say(f"{lesson.num_tokens:,} tokens, {lesson.num_steps} steps, {threads} thread(s)")
    peak = matmul_peak_flops_per_s()
    for arm in _arms(lesson, settings.seed).values():  # what is slow only once
        arm.train(lesson.examples[:WARM_UP_EXAMPLES])
    arms = _arms(lesson, settings.seed)
    rates = _in_turns(arms, lesson)
    losses = {name: held_out_loss(arm.lrm, lesson) for name, arm in arms.items()}
    peak = max(peak, matmul_peak_flops_per_s())
    say("rounds of the training loop")
    rounds = _rounds(data, lesson, arms["ours"], scale=scale, seed=settings.seed)
    flops = training_flops(lesson.lrm, lesson.examples) / lesson.num_tokens
    return measures(Run(threads, rates, losses, flops, peak, rounds))


def lesson_of(data: MovieLensRows, *, scale: float, seed: int) -> Lesson:
    """Make the examples of a part of the rows as a round does, and an untrained nano LRM."""
    config = BootstrapConfig()
    rng = random.Random(seed)
    videos = {one.video_id: Video.of(one) for one in data.assigned}
    drawn = rng.sample(list(data.past), round(ROWS_SHARE * scale * len(data.past)) + HELD_OUT_ROWS)
    held_out, rows = drawn[:HELD_OUT_ROWS], drawn[HELD_OUT_ROWS:]
    lrm = build_lrm(texts_of(rows, videos), SPACE, config=config.lrm, seed=seed)
    metadata = text_examples(lrm, video_texts(videos.values(), config.recipe, rng))
    share = config.metadata_share * len(rows) / len(data.past)  # as in a whole epoch
    examples = [
        *behaviour_examples(lrm, behaviours(rows), videos),
        *rng.sample(metadata, round(share * len(metadata))),
        *watch_text_examples(lrm, behaviours(rows), videos, config.recipe, rng),
    ]
    rng.shuffle(examples)
    training = replace(config.training, dropout=0.0)  # the Trainer's model has none
    blocks = pack(examples, block_tokens=training.block_tokens, rng=random.Random(seed))
    return Lesson(
        lrm=lrm,
        config=training,
        videos=videos,
        rows=rows,
        held_out=held_out,
        examples=examples,
        num_tokens=sum(len(block.token_ids_T) for block in blocks),
        num_steps=len(blocks) // training.blocks_per_step,
    )


def _arms(lesson: Lesson, seed: int) -> dict[str, Arm]:
    batch_size = round(len(lesson.examples) / lesson.num_steps)
    lrm, config, steps = lesson.lrm, lesson.config, lesson.num_steps

    def padded(products: Callable[[], AbstractContextManager[None]]) -> Arm:
        return PaddedTrainerArm(
            lrm, config, num_steps=steps, seed=seed, batch_size=batch_size, products=products
        )

    return {
        "ours": OurArm(lrm, config, num_steps=steps, seed=seed),
        TRAINER: padded(nullcontext),
        FAST_TRAINER: padded(fast_products),
        PACKED_TRAINER: PackedTrainerArm(lrm, config, num_steps=steps, seed=seed),
    }


def _in_turns(arms: Mapping[str, Arm], lesson: Lesson) -> dict[str, list[Rate]]:
    """Train every arm on a part of the examples after the other, and return its rates in each."""
    found: dict[str, list[Rate]] = {name: [] for name in arms}
    for turn in range(TURNS):
        part = lesson.examples[turn::TURNS]
        tokens = sum(min(len(one.token_ids), lesson.config.block_tokens) for one in part)
        for name, arm in arms.items():
            arm.train(part)
            found[name].append(Rate(tokens / arm.seconds[-1], tokens / arm.cpu_seconds[-1]))
        rates = ", ".join(f"{rates[-1].tokens_per_s:,.0f}" for rates in found.values())
        say(f"  turn {turn + 1} of {TURNS}: {rates} tokens/s")
    return found


def held_out_loss(lrm: Lrm, lesson: Lesson) -> float:
    """Return the mean loss on the rows that no arm has seen."""
    examples = behaviour_examples(lrm, behaviours(lesson.held_out), lesson.videos)
    blocks = pack(examples, block_tokens=lesson.config.block_tokens, rng=random.Random(0))
    return evaluate_loss(lrm, blocks)


def _rounds(
    data: MovieLensRows, lesson: Lesson, arm: Arm, *, scale: float, seed: int
) -> list[Round]:
    """Let the training loop go on from what our arm has learned, shard by shard of later watches."""
    state = new_state(arm.lrm, lesson.config, seed=seed)
    state.optimizer, state.model_version, state.steps = arm.optimizer, 1, arm.steps_done
    state.anchor_rows = list(lesson.held_out[:ANCHOR_ROWS])
    state.anchor_loss = loss_on(state, state.anchor_rows, lesson.videos)
    for row in lesson.rows:
        state.reservoir.add(row, state.rng)
    shards = in_shards(
        data.later,
        watches=max(20, round(SHARD_WATCHES * scale)),
        count=SHARDS_WARM_UP + SHARDS_MEASURED,
        rng=random.Random(seed),
    )
    with tempfile.TemporaryDirectory() as folder:
        return timed_rounds(Path(folder), state, data.assigned, shards)[SHARDS_WARM_UP:]


def measures(run: Run) -> list[Measure]:
    """Return the report's lines: medians over turns and over rounds."""
    rates = {
        name: Rate(*(statistics.median(turns) for turns in zip(*of_arm, strict=True)))
        for name, of_arm in run.rates.items()
    }
    ours, padded, loss = rates["ours"], rates[TRAINER], run.losses["ours"]
    fast, packed = rates[FAST_TRAINER], rates[PACKED_TRAINER]
    # The peak is the best of many tries, which a busy machine hardly lowers: nor may it lower what is compared with it.
    flops_per_s = ours.tokens_per_cpu_s * run.threads * run.flops_per_token
    _say_whether_ours_learns_as_well(run.losses)
    return [
        measured("threads", run.threads, "threads", more=True),
        Measure(
            measure="tokens_per_s",
            value=ours.tokens_per_s,
            unit="tokens/s",
            higher_is_better=True,
            peer=TRAINER,
            peer_value=padded.tokens_per_s,
        ),
        Measure(
            measure="tokens_per_cpu_s",
            value=ours.tokens_per_cpu_s,
            unit="tokens/CPU-s",
            higher_is_better=True,
            peer=TRAINER,
            peer_value=padded.tokens_per_cpu_s,
        ),
        measured_over(
            "tokens_per_s_over_fast_trainer", ours.tokens_per_s / fast.tokens_per_s, FAST_TRAINER
        ),
        measured_over(
            "tokens_per_s_over_packed_trainer",
            ours.tokens_per_s / packed.tokens_per_s,
            PACKED_TRAINER,
        ),
        Measure(
            measure="held_out_loss",
            value=loss,
            unit="nats",
            higher_is_better=False,
            peer=TRAINER,
            peer_value=run.losses[TRAINER],
        ),
        measured("held_out_loss_packed_trainer", run.losses[PACKED_TRAINER], "nats"),
        measured("flops_per_token", run.flops_per_token, "flops"),
        measured("matmul_peak_gflops_per_s", run.peak_flops_per_s / 1e9, "Gflops/s", more=True),
        measured("mfu", flops_per_s / run.peak_flops_per_s, "share", more=True),
        measured("shard_to_promoted_s", statistics.median(one.seconds for one in run.rounds), "s"),
        *(
            measured(
                f"time_in_{part}_s", statistics.median(one.parts[part] for one in run.rounds), "s"
            )
            for part in PARTS
        ),
    ]


def learns_as_well(losses: Mapping[str, float]) -> bool:
    """Return whether nobody's loss is below ours by more than the tolerance.

    Where that is so, to come to a loss takes the others at least as many tokens as us, and rates compare as times.
    """
    return losses["ours"] <= (1 + LOSS_TOLERANCE) * min(losses.values())


def _say_whether_ours_learns_as_well(losses: Mapping[str, float]) -> None:
    for name, loss in losses.items():
        say(f"  held-out loss {loss:.4f}  {name}")
    verdict = "nobody has" if learns_as_well(losses) else "SOMEBODY HAS"
    say(f"{verdict} a loss more than {LOSS_TOLERANCE:.0%} below ours at equal tokens")

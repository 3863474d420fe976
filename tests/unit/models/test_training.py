from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.examples import (
    IGNORED,
    REWARD_MIN,
    Behaviour,
    Block,
    Example,
    behaviour_examples,
    pack,
    text_examples,
    window_examples,
)
from models.lrm import Lrm
from models.prompts import VideoLike
from models.tasks import Recipe, video_texts
from models.training import (
    TrainingConfig,
    evaluate_loss,
    initial_learning_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    train_on,
)
from tests.lrm_factories import SeenWatch, some_videos, tiny_lrm

VIDEOS = some_videos()
CONFIG = TrainingConfig(block_tokens=128, blocks_per_step=2, dropout=0.0)


def metadata(lrm: Lrm, videos: Iterable[VideoLike]) -> list[Example]:
    return text_examples(lrm, video_texts(videos, Recipe(), random.Random(0)))


def some_blocks(seed: int = 0) -> list[Block]:
    lrm = tiny_lrm()
    rows = [
        Behaviour(None, [], [SeenWatch(f"v{(start + step) % 24}") for step in range(8)])
        for start in range(12)
    ]
    examples = behaviour_examples(lrm, rows, VIDEOS) + metadata(lrm, VIDEOS.values())
    return pack(examples, block_tokens=CONFIG.block_tokens, rng=random.Random(seed))


def test_new_watches_are_learned_once_each_and_history_never() -> None:
    lrm = tiny_lrm()
    history = [SeenWatch("v0"), SeenWatch("v1")]
    new = [SeenWatch(f"v{number}") for number in range(2, 24)] * 3  # longer than one text may be
    examples = behaviour_examples(lrm, [Behaviour(None, history, new)], VIDEOS)
    learned = [token for example in examples for token in example.labels if token != IGNORED]
    wanted = [
        int(ids[code])
        for watch in new
        for ids, code in zip(lrm.level_token_ids, VIDEOS[watch.video_id].semantic_id, strict=True)
    ]
    assert learned == wanted
    assert len(examples) > 1


def test_windows_learn_every_watch_once_and_are_cut_elsewhere_each_time() -> None:
    lrm, rng = tiny_lrm(), random.Random(0)
    watches = [SeenWatch(f"v{number % 24}") for number in range(50)]
    histories = [Behaviour(None, [], watches), Behaviour(None, [], watches[:3])]
    epochs = [window_examples(lrm, histories, VIDEOS, rng) for _ in range(4)]
    learned = [
        sum(label != IGNORED for example in epoch for label in example.labels) for epoch in epochs
    ]
    assert learned == [53 * lrm.space.num_levels] * 4
    assert len({tuple(len(example.token_ids) for example in epoch) for epoch in epochs}) > 1
    assert all(len(epoch) in (4, 5) for epoch in epochs)  # of 20 watches at most, and the short one


def test_packing_keeps_every_token_and_label_without_padding() -> None:
    lrm = tiny_lrm()
    examples = metadata(lrm, VIDEOS.values())
    blocks = pack(examples, block_tokens=128, rng=random.Random(0))
    assert sum(len(block.token_ids_T) for block in blocks) == sum(
        len(one.token_ids) for one in examples
    )
    assert all(len(block.token_ids_T) <= 128 for block in blocks)
    filled = sum(len(block.token_ids_T) for block in blocks) / (128 * len(blocks))
    assert filled > 0.8


def test_packed_loss_equals_the_loss_of_each_example_alone() -> None:
    lrm = tiny_lrm()
    examples = metadata(lrm, list(VIDEOS.values())[:4])
    blocks = pack(examples, block_tokens=256, rng=random.Random(0))
    packed = evaluate_loss(lrm, blocks)
    total, count = 0.0, 0
    for example in examples:
        ids, labels = torch.tensor([example.token_ids]), torch.tensor(example.labels)
        logits = lrm.model(input_ids=ids).logits[0, :-1]
        wanted = labels[1:] != IGNORED
        total += cross_entropy(logits[wanted], labels[1:][wanted], reduction="sum").item()
        count += int(wanted.sum())
    assert abs(packed - total / count) < 1e-4


def test_watches_count_by_how_much_of_them_was_watched() -> None:
    lrm = tiny_lrm()
    watches = [
        SeenWatch("v1", percent=100),
        SeenWatch("v2", percent=40),
        SeenWatch("v3", percent=0),
    ]
    row, levels = Behaviour(None, [], watches), lrm.space.num_levels

    def weights_of(examples: list[Example]) -> list[float]:
        [one] = examples
        learned = zip(one.labels, one.weights, strict=True)
        return [weight for label, weight in learned if label != IGNORED]

    halves = behaviour_examples(lrm, [row], VIDEOS, reward_share=0.5)
    assert weights_of(halves) == pytest.approx([1.0] * levels + [0.7] * levels + [0.525] * levels)
    whole = window_examples(lrm, [row], VIDEOS, random.Random(0), reward_share=1.0)
    assert weights_of(whole) == pytest.approx(
        [1.0] * levels + [0.4] * levels + [REWARD_MIN] * levels
    )
    equal = behaviour_examples(lrm, [row], VIDEOS)
    assert weights_of(equal) == [1.0] * 3 * levels


def test_loss_is_the_mean_by_weight() -> None:
    lrm = tiny_lrm()
    rows = [
        Behaviour(None, [], [SeenWatch(name, percent=share)])
        for name, share in (("v1", 90), ("v2", 10))
    ]
    [alone, other] = [behaviour_examples(lrm, [row], VIDEOS) for row in rows]
    losses = [
        evaluate_loss(lrm, pack(one, block_tokens=128, rng=random.Random(0)))
        for one in (alone, other)
    ]
    both = behaviour_examples(lrm, rows, VIDEOS, reward_share=1.0)
    found = evaluate_loss(lrm, pack(both, block_tokens=128, rng=random.Random(0)))
    assert found == pytest.approx(0.9 * losses[0] + 0.1 * losses[1], rel=1e-5)


def test_training_lowers_the_loss() -> None:
    lrm = tiny_lrm()
    optimizer = make_optimizer(lrm, CONFIG)
    blocks = some_blocks()
    losses = train_on(lrm, optimizer, blocks * 12, CONFIG)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_interrupted_training_equals_uninterrupted_loss_for_loss() -> None:
    blocks = some_blocks()
    whole = tiny_lrm()
    losses = train_on(whole, make_optimizer(whole, CONFIG), blocks, CONFIG)

    first = tiny_lrm()
    optimizer = make_optimizer(first, CONFIG)
    half = len(blocks) // CONFIG.blocks_per_step // 2 * CONFIG.blocks_per_step
    before = train_on(first, optimizer, blocks[:half], CONFIG)
    resumed = tiny_lrm(seed=1)
    resumed.model.load_state_dict(first.model.state_dict())
    other = make_optimizer(resumed, CONFIG)
    restore_optimizer(resumed.model, other, optimizer_tensors(first.model, optimizer))
    after = train_on(resumed, other, blocks[half:], CONFIG)
    assert before + after == losses


def test_initial_learning_rate_rises_then_falls_to_that_of_the_rounds() -> None:
    rates = [initial_learning_rate(CONFIG, step, 100) for step in range(101)]
    peak = rates.index(max(rates))
    assert 0 < peak < 10
    assert rates[peak] == CONFIG.peak_learning_rate
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert abs(rates[-1] - CONFIG.round_learning_rate) < 1e-9

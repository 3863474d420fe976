"""Training examples for the LRM, and packing them without padding; knows nothing of optimizers or where rows come from.

Shape suffixes: B blocks of a step, T tokens of a packed block.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.lrm import Lrm
from models.prompts import (
    TimedWatchLike,
    VideoLike,
    Videos,
    ViewerLike,
    WatchLike,
    render_history,
    render_semantic_id,
    render_viewer,
)
from models.tasks import (
    VIDEO_TASKS,
    Recipe,
    Text,
    intent_of,
    render_related,
    watch_texts,
)

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out
REWARD_MIN = 0.05
HIDDEN = torch.finfo(
    torch.float32
).min  # minus infinity would be no number where a row has nothing else


@dataclass(frozen=True)
class Example:
    """One text as token ids, with the label of each token, or IGNORED where nothing is to be learned.

    `weights` say how much each label counts in the loss; without them each counts once.
    """

    token_ids: tuple[int, ...]
    labels: tuple[int, ...]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Block:
    """Several examples side by side, none of which sees another.

    Shapes: token_ids_T, labels_T, position_ids_T, segment_T int64, weights_T float32; segment_T numbers the examples.
    """

    token_ids_T: Tensor
    labels_T: Tensor
    weights_T: Tensor
    position_ids_T: Tensor
    segment_T: Tensor


@dataclass(frozen=True)
class Batch:
    """The blocks of a step side by side, as a model reads them.

    Shapes: token_ids_BT, labels_BT, position_ids_BT int64; weights_BT float32; mask_B1TT float32: added to the
    attention's scores, 0 where a token (third axis) sees another (fourth), within its own example and not behind it.
    """

    token_ids_BT: Tensor
    labels_BT: Tensor
    weights_BT: Tensor
    position_ids_BT: Tensor
    mask_B1TT: Tensor


def reward(watch: WatchLike, share: float) -> float:
    """Return how much a watch counts in the loss; `share` of it follows how much of the video was watched.

    PLUM (2510.07784, on supervised fine-tuning) weighs what was clicked by a reward. What was left at once still
    counts a little: it was clicked.
    """
    return 1 - share + share * max(REWARD_MIN, watch.percent / 100)


@dataclass(frozen=True)
class Behaviour:
    """A viewer with the watches known before and the new ones, both in time order."""

    viewer: ViewerLike | None
    history: Sequence[WatchLike]
    watches: Sequence[TimedWatchLike]


def behaviour_examples(
    lrm: Lrm,
    rows: Iterable[Behaviour],
    videos: Videos,
    *,
    context_min: int = 8,
    surface: str | None = None,
    reward_share: float = 0.0,
) -> list[Example]:
    """Return texts in which the codes of each *new* watch are learned from all that came before.

    With a surface only its watches are learned, from those of all surfaces; texts without any are left out. With a
    `reward_share` watches count by `reward`.

    A text holds at most `history_max` watches, so that no position is trained that serving never sees; a long row
    becomes several texts, each opening with at least `context_min` earlier watches where there are any.
    """
    examples = []
    for row in rows:
        known = [watch for watch in row.history if watch.video_id in videos]
        new = [watch for watch in row.watches if watch.video_id in videos]
        everything, first_new = known + new, len(known)
        while first_new < len(everything):
            context = context_min
            if len(everything) - first_new < lrm.history_max - context:
                context = lrm.history_max - (len(everything) - first_new)
            start = max(0, first_new - context)
            end = min(len(everything), start + lrm.history_max)
            learned = [
                at for at in range(first_new, end) if surface in (None, everything[at].surface)
            ]
            if learned:  # nothing behind the last of them is worth its tokens
                some = everything[start : learned[-1] + 1]
                examples.append(
                    _behaviour(
                        lrm, row.viewer, some, first_new - start, videos, surface, reward_share
                    )
                )
            first_new = end
    return examples


def window_examples(
    lrm: Lrm,
    histories: Iterable[Behaviour],
    videos: Videos,
    rng: random.Random,
    *,
    reward_share: float = 0.0,
) -> list[Example]:
    """Return texts in which the codes of *every* new watch are learned, each history cut at a random place.

    For fits of several epochs over whole histories: windows of `history_max` watches that do not overlap read no token
    twice, and each epoch cuts elsewhere, so that a watch is learned behind contexts of all lengths.
    """
    examples = []
    for one in histories:
        watches = [watch for watch in one.watches if watch.video_id in videos]
        end = rng.randint(1, lrm.history_max) if len(watches) > lrm.history_max else len(watches)
        start = 0
        while start < len(watches):
            some = watches[start:end]
            examples.append(_behaviour(lrm, one.viewer, some, 0, videos, reward_share=reward_share))
            start, end = end, end + lrm.history_max
    return examples


def _behaviour(
    lrm: Lrm,
    viewer: ViewerLike | None,
    watches: Sequence[WatchLike],
    first_new: int,
    videos: Videos,
    surface: str | None = None,
    reward_share: float = 0.0,
) -> Example:
    head = render_viewer(viewer)
    token_ids = lrm.encode(head)
    labels = [IGNORED] * len(token_ids)
    weights = [1.0] * len(token_ids)
    num_levels = lrm.space.num_levels
    lines = render_history(watches, videos)
    for index, (watch, (ask, watched)) in enumerate(zip(watches, lines, strict=True)):
        before = lrm.encode(ask)
        ids = lrm.encode(watched)  # begins with one token per level
        token_ids += before + ids
        labels += [IGNORED] * len(before)
        is_learned = index >= first_new and surface in (None, watch.surface)
        learned = num_levels if is_learned else 0
        labels += ids[:learned] + [IGNORED] * (len(ids) - learned)
        weights += [reward(watch, reward_share)] * (len(before) + len(ids))
    return Example(tuple(token_ids), tuple(labels), tuple(weights))


def text_examples(lrm: Lrm, texts: Iterable[Text]) -> list[Example]:
    """Return texts as examples; loss on the answer only."""
    examples = []
    for prompt, answer in texts:
        before, after = lrm.encode(prompt), [*lrm.encode(answer), lrm.eos_token_id]
        examples.append(Example((*before, *after), (*[IGNORED] * len(before), *after)))
    return examples


def watch_text_examples(
    lrm: Lrm, rows: Iterable[Behaviour], videos: Videos, recipe: Recipe, rng: random.Random
) -> list[Example]:
    """Return the texts of rows beside their histories: see `models.tasks.watch_texts`."""
    return text_examples(
        lrm,
        (
            text
            for row in rows
            for text in watch_texts(row.viewer, row.history, row.watches, videos, recipe, rng)
        ),
    )


def pack(examples: Iterable[Example], *, block_tokens: int, rng: random.Random) -> list[Block]:
    """Shuffle the examples into blocks of at most `block_tokens`, first fit; a longer example is cut on the left."""
    shuffled = list(examples)
    rng.shuffle(shuffled)
    open_blocks: list[list[Example]] = []
    sizes: list[int] = []
    for example in shuffled:
        size = min(len(example.token_ids), block_tokens)
        for index in range(
            max(0, len(sizes) - 16), len(sizes)
        ):  # the newest few: linear time, little waste
            if sizes[index] + size <= block_tokens:
                open_blocks[index].append(example)
                sizes[index] += size
                break
        else:
            open_blocks.append([example])
            sizes.append(size)
    return [_block(members, block_tokens) for members in open_blocks]


def _block(members: Sequence[Example], block_tokens: int) -> Block:
    token_ids: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    positions: list[int] = []
    segments: list[int] = []
    for segment, example in enumerate(members):
        ids = example.token_ids[-block_tokens:]
        token_ids += ids
        labels += (IGNORED, *example.labels[-block_tokens:][1:])  # nothing predicts a first token
        weights += example.weights[-block_tokens:] or [1.0] * len(ids)
        positions += range(len(ids))
        segments += [segment] * len(ids)
    return Block(
        *(torch.tensor(values) for values in (token_ids, labels, weights, positions, segments))
    )


def collate(blocks: Sequence[Block], *, pad_token_id: int) -> Batch:
    """Return the blocks below each other, the shorter ones filled up on the right with what is not learned."""
    longest = max(len(block.token_ids_T) for block in blocks)

    def stacked(values: Iterable[Tensor], fill: int) -> Tensor:
        return torch.stack([pad(value, (0, longest - len(value)), value=fill) for value in values])

    segment_BT = stacked((block.segment_T for block in blocks), -1)
    hidden_BTT = torch.tril(segment_BT[:, :, None] == segment_BT[:, None, :]).logical_not()
    mask_BTT = torch.zeros(hidden_BTT.shape).masked_fill_(hidden_BTT, HIDDEN)
    return Batch(
        token_ids_BT=stacked((block.token_ids_T for block in blocks), pad_token_id),
        labels_BT=stacked((block.labels_T for block in blocks), IGNORED),
        weights_BT=stacked((block.weights_T for block in blocks), 0),
        position_ids_BT=stacked((block.position_ids_T for block in blocks), 0),
        mask_B1TT=mask_BTT[:, None],
    )


def describe_texts(videos: Iterable[VideoLike]) -> Iterator[str]:
    """Yield texts from which a BPE for this catalogue is learned, without their codes."""
    rng = random.Random(0)
    for video in videos:
        codes = render_semantic_id(video.semantic_id)
        for task in VIDEO_TASKS.values():
            if (text := task.render(video)) is not None:
                yield "".join(text).replace(codes, " ")
        yield render_related(video, video.upload_time_ms).replace(codes, " ")
        yield f" wants {intent_of(video, rng)}:"

from __future__ import annotations

import random

import torch

from models.training import TrainingConfig
from models.two_tower import ItemContents
from streams.events import WatchEvent
from streams.timeline import Timeline, on_timeline
from tests.bench.parts.quality_data import Catalogue
from tests.bench.parts.quality_stream import Round, Stream, rounds, stream_of
from tests.lrm_factories import SPACE, some_videos, tiny_lrm
from workers.training_state import TrainingState, new_state

NUM_ITEMS, NUM_USERS, PER_USER = 24, 6, 10


def some_stream() -> Stream:
    """Six users take turns; item n is uploaded just before the first watch at 2n seconds or later."""
    videos = some_videos(NUM_ITEMS)
    contents = ItemContents(list(videos), torch.eye(NUM_ITEMS), torch.arange(NUM_ITEMS) % 4)
    times_ms = [2000 * number for number in range(NUM_ITEMS)]
    catalogue = Catalogue(SPACE, list(videos), times_ms, videos, contents, 4, NUM_ITEMS // 2)
    rng = random.Random(0)
    watched: dict[int, set[int]] = {user: set() for user in range(NUM_USERS)}
    events = []
    for at in range(NUM_USERS * PER_USER):
        user, at_ms = at % NUM_USERS, 20_000 + 500 * at
        number = rng.choice(
            [n for n in range(min(NUM_ITEMS, at_ms // 2000 + 1)) if n not in watched[user]]
        )
        watched[user].add(number)
        events.append(
            WatchEvent(
                event_id=f"e{at}", event_time_ms=at_ms, user_id=f"u{user}", video_id=f"v{number}",
                surface="home", watched_s=60.0, duration_s=60.0,
            )
        )  # fmt: skip
    return stream_of(catalogue, Timeline(tuple(map(on_timeline, events))), 24)


STREAM = some_stream()


def some_rounds(per_stratum: int = 100) -> list[Round]:
    return list(rounds(STREAM, start=24, end=60, size=12, per_stratum=per_stratum, seed=0))


def some_state() -> TrainingState:
    state = new_state(tiny_lrm(), TrainingConfig(block_tokens=128, blocks_per_step=2), seed=0)
    state.anchor_loss = 100.0
    return state

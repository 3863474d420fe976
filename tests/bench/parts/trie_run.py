"""The trie at all sizes in one process of its own: memory first, then writes, then decode steps in turns.

A step is one level of a beam search of 50 behind a prompt of 700 tokens: the forward of 50 tokens and the log-probs of
the level's codes. What the constraint adds is `TrieView.best_children`, the whole choice of the best allowed beams,
averaged over the levels, for a viewer who has watched a hundred videos: each search looks those up anew, walks beams
of its own, and finds at each level caches out of which a forward's worth of memory has pushed the trie, and in which
the log-probs are the newest. Both are timed by the CPU-time of the one thread that they run in, in turns, so that what
else the machine does falls on both; each is the median of all its turns, none left out.

Writes begin behind an overlay that is half full, which they fill, so that a merge of everything runs during the last of
them. After every fourth insert a video is removed, by turns one of the base and one of the overlay.

Semantic IDs crowd as content does: the square of a uniform number picks each code. A video has an id of 11 characters,
one of a channel per 50 videos, one of 20 languages.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.semantic_id import SemanticIdSpace
from models.trie import OVERLAY_MAX, LiveTrie, warm
from models.trie_filters import Filters
from tests.bench.parts.marks import say

SPACE = SemanticIdSpace(
    codebook_version=1, codebook_sizes=(2048, 1024, 512), disambiguation_size=64
)
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
BEAM_WIDTH = 50
WATCHED = 100
VIDEOS_PER_CHANNEL = 50
LANGUAGES = [f"l{number}" for number in range(20)]
NOW_MS = 1_700_000_000_000
YEAR_MS = 365 * 86_400_000
REMOVE_EVERY = 4
LEFT_IN_OVERLAY = 2000
EVICT_BYTES = 64 << 20
Int64s = NDArray[np.int64]


class Figures(NamedTuple):
    """What one run found; of several sizes where the name has none.

    Attributes:
        mask_ms: by number of videos.
        fresh_mask_ms: the same under an age limit that one video in a thousand passes, at the largest size.
        model_step_ms: by model.
        static_s, sort_s: of STATIC's rebuild from sorted semantic IDs, and of sorting them.
        dict_step_ms, trie_step_ms: of the dict trie and ours with the same videos.
    """

    bytes_per_video: float
    peak_bytes_per_video: float
    insert_ms: list[float]
    remove_ms: list[float]
    merge_s: float
    static_s: float
    sort_s: float
    mask_ms: dict[int, float]
    fresh_mask_ms: float
    model_step_ms: dict[str, float]
    dict_step_ms: float
    trie_step_ms: float


def run(scale: float, models: Sequence[str], writes: int = 12_000, turns: int = 15) -> Figures:
    """Measure everything at `scale` times the sizes."""
    sizes = [max(1000, round(size * scale)) for size in SIZES]
    warm()
    big = sizes[-1]
    keys_N = semantic_ids(big, seed=0)
    _trim()
    before = _status("VmRSS")
    say(f"inserting {big:,} videos")
    trie = filled(keys_N)
    _trim()
    held = _status("VmRSS") - before
    say(f"{held / big:.1f} bytes per video; merging")
    merge_s, peak = _merge(trie, before)
    say("writing")
    insert_ms, remove_ms = _writes(trie, keys_N, writes)
    started = time.perf_counter()
    from tests.bench.parts.trie_peers import static_index  # torch, which would count as memory

    say(f"imported in {time.perf_counter() - started:.1f} s")
    sorted_N = keys_N.copy()
    sort_s = _timed(sorted_N.sort, time.perf_counter)
    static_s = _timed(lambda: static_index(SPACE, sorted_N), time.perf_counter)
    say(f"STATIC took {static_s:.1f} s of sorted semantic IDs, and sorting them {sort_s:.1f} s")
    tries = {size: filled(keys_N[:: big // size][:size]) for size in sizes[:-1]} | {big: trie}
    from tests.bench.parts.trie_steps import dict_and_trie_ms, model_steps

    seen = {size: Filters(excluded_video_ids=some_watched(size)) for size in sizes}
    fresh = Filters(uploaded_after_ms=NOW_MS - YEAR_MS // 1000)
    masks: dict[int, list[float]] = {size: [] for size in sizes}
    fresh_ms: list[float] = []
    steps: dict[str, list[float]] = {name: [] for name in models}
    with model_steps(models, SPACE, BEAM_WIDTH) as timed_steps:
        for turn in range(turns):
            for size, one in tries.items():
                masks[size] += mask_ms(one, seen[size], seed=turn)
            fresh_ms += mask_ms(trie, fresh, seed=turn, repeats=1)
            for name, step in timed_steps.items():
                steps[name] += step()
            say(f"turn {turn + 1} of {turns}")
    dict_size = sizes[2]
    say(f"dict trie of {dict_size:,}")
    some_N = keys_N[:: big // dict_size][:dict_size]
    same = tries[dict_size] if dict_size < big else filled(some_N)  # which writes did not add to
    dict_ms, trie_ms = dict_and_trie_ms(SPACE, some_N, same.view, BEAM_WIDTH)
    return Figures(
        held / big,
        peak / big,
        insert_ms,
        remove_ms,
        merge_s,
        static_s,
        sort_s,
        {size: statistics.median(found) for size, found in masks.items()},
        statistics.median(fresh_ms),
        {name: statistics.median(found) for name, found in steps.items()},
        dict_ms,
        trie_ms,
    )


def semantic_ids(count: int, *, seed: int) -> Int64s:
    """Return distinct packed semantic IDs in random order."""
    rng = np.random.default_rng(seed)
    keys_N = np.empty(0, np.int64)
    while len(keys_N) < count:
        more_N = np.zeros(count, np.int64)
        for size, bits in zip(SPACE.level_sizes, SPACE.level_bits, strict=True):
            codes_N = (rng.random(count, dtype=np.float32) ** 2 * size).astype(np.int64)
            more_N = (more_N << bits) | np.minimum(codes_N, size - 1)
        keys_N = np.unique(np.concatenate([keys_N, more_N]))
    rng.shuffle(keys_N)
    return keys_N[:count]


def filled(keys_N: Int64s) -> LiveTrie:
    """Return a trie of these, whose videos are numbered."""
    count = len(keys_N)
    rng = np.random.default_rng(1)
    num_channels = -(-count // VIDEOS_PER_CHANNEL)
    channels = [f"channel-{number}" for number in range(num_channels)]
    trie = LiveTrie(SPACE)
    trie.insert_many(
        SPACE.unpack(keys_N),
        [video_id(number) for number in range(count)],
        NOW_MS - rng.integers(0, YEAR_MS, count),
        channels=[channels[number % num_channels] for number in range(count)],
        languages=[LANGUAGES[number % len(LANGUAGES)] for number in range(count)],
    )
    return trie


def video_id(number: int) -> str:
    """Return an id of 11 characters."""
    return f"{number:011x}"


def some_watched(size: int) -> list[str]:
    """Return the ids of a viewer's watches."""
    return [video_id(number) for number in range(0, size, max(1, size // WATCHED))]


def mask_ms(trie: LiveTrie, filters: Filters, *, seed: int, repeats: int = 3) -> list[float]:
    """Return what the constraint adds to a step, averaged over the levels, of some walks, each with a view anew."""
    rng, elsewhere = np.random.default_rng(seed), np.ones(EVICT_BYTES // 8)
    found = []
    for _ in range(repeats):
        prefixes, sums, spent_s = np.zeros(1, np.int64), np.zeros(1), 0.0
        for level, size in enumerate(SPACE.level_sizes):
            elsewhere.sum()
            logits_WK = rng.normal(0, 2, (len(prefixes), size)).astype(np.float32)
            log_probs_WK = logits_WK - np.log(np.exp(logits_WK).sum(-1, keepdims=True))
            began = time.thread_time()
            if level == 0:
                view = trie.view.filtered(filters)
            best = view.best_children(prefixes, level, sums, log_probs_WK, count=BEAM_WIDTH)
            spent_s += time.thread_time() - began
            prefixes, sums = best.prefix_C, best.log_probs_C
        found.append(1000 * spent_s / SPACE.num_levels)
    return found


def _merge(trie: LiveTrie, before: int) -> tuple[float, int]:
    """Return how long a merge of one insert takes, and the greatest memory meanwhile."""
    moved = trie.semantic_id_of(video_id(0))
    assert moved is not None
    trie.remove(video_id(0))
    Path("/proc/self/clear_refs").write_text("5")
    trie.insert(moved, video_id(0), NOW_MS)
    merge_s = _timed(trie.settle, time.perf_counter)
    peak = _status("VmHWM") - before
    _trim()
    return merge_s, peak


def _writes(trie: LiveTrie, keys_N: Int64s, count: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of single inserts and removals, and leave a small overlay behind."""
    rng, taken = np.random.default_rng(2), set(keys_N.tolist() if len(keys_N) < 100_000 else ())
    half, inserted, removed = OVERLAY_MAX // 2, list[float](), list[float]()
    for number in range(half):
        _inserted_ms(trie, rng, taken, f"h{number:010x}")
    for number in range(count):
        took_ms = _inserted_ms(trie, rng, taken, f"n{number:010x}")
        inserted += [] if took_ms is None else [took_ms]
        if number % REMOVE_EVERY == 0:
            turn = number // REMOVE_EVERY
            old = video_id(turn * 7919 % len(keys_N)) if turn % 2 else f"h{turn % half:010x}"
            began = time.perf_counter()
            trie.remove(old)
            removed.append(1000 * (time.perf_counter() - began))
    trie.settle()
    for number in range(LEFT_IN_OVERLAY):
        _inserted_ms(trie, rng, taken, f"l{number:010x}")
    return inserted, removed


def _inserted_ms(
    trie: LiveTrie, rng: np.random.Generator, taken: set[int], name: str
) -> float | None:
    """Return how long one insert under a random semantic ID took; None where another video holds it."""
    codes_L = [int(rng.integers(size)) for size in SPACE.level_sizes]
    semantic_id = tuple(codes_L)
    if int(SPACE.pack(np.array([semantic_id]))[0]) in taken:
        return None
    began = time.perf_counter()
    try:
        trie.insert(semantic_id, name, NOW_MS, channel="channel-1", language="l1")
    except ValueError:
        return None
    return 1000 * (time.perf_counter() - began)


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return clock() - began


def _status(field: str) -> int:
    """Return a size of this process in bytes."""
    gc.collect()
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, field
    return int(found[1]) * 1024


def _trim() -> None:
    """Give freed memory back to the system, so that it is not counted."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)

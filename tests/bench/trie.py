"""The trie: what a write costs, what a video takes, what the constraint adds to a decode step, beside others' ways.

One process of its own holds tries of 10 k to 10 M videos; `tests.bench.parts.trie_run` says what a step is and how it
is timed. `insert_ms` and `remove_ms` are the 99th percentile of single writes at 10 M, by the wall clock, with a full
merge in the background of some of them; the next call of any view sees them. Memory is what the process grew by, ids,
filters' columns and the dicts of channels included; the peak is of a merge at 10 M. `rebuild_s_per_million` compares
our merge, which goes on in the background, with a full rebuild in the manner of STATIC, which is what any change waits
for there, and which holds neither ids nor what filters need; both begin from sorted semantic IDs. `step_over_dict_trie`
is of 1 M videos.

`BENCH_SCALE=0.01` makes the sizes smaller, to try it; figures mean something at 1 only, which takes some ten minutes.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from models.base_models import NANO_MODEL, SMOLLM2
from tests.bench.measure import Measure, measured, measured_over
from tests.bench.parts.marks import say
from tests.bench.parts.trie_run import Figures, run


def measure() -> list[Measure]:
    """Run everything in a fresh process."""
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        figures = process.submit(run, scale, (NANO_MODEL, SMOLLM2)).result()
    for size, mask_ms in figures.mask_ms.items():
        say(f"{size:,} videos: {mask_ms:.3f} ms per step")
    say(f"under an age limit that one in 1,000 passes: {figures.fresh_mask_ms:.3f} ms per step")
    for name, step_ms in figures.model_step_ms.items():
        say(f"{name}: {step_ms:.2f} ms per step")
    say(f"sorting all semantic IDs, which is in neither rebuild: {figures.sort_s:.2f} s")
    say(f"median insert {np.median(figures.insert_ms):.3f} ms")
    say(f"median remove {np.median(figures.remove_ms):.3f} ms")
    return as_measures(figures)


def as_measures(figures: Figures) -> list[Measure]:
    """Return the report's lines."""
    smallest, biggest = min(figures.mask_ms), max(figures.mask_ms)
    mask_ms, millions = figures.mask_ms[biggest], biggest / 1e6
    return [
        measured("insert_ms", float(np.quantile(figures.insert_ms, 0.99)), "ms"),
        measured("remove_ms", float(np.quantile(figures.remove_ms, 0.99)), "ms"),
        measured("mb_per_million", figures.bytes_per_video, "MB"),
        measured("peak_mb_per_million", figures.peak_bytes_per_video, "MB"),
        measured(
            "mask_share_of_nano_step_10m", mask_ms / figures.model_step_ms[NANO_MODEL], "share"
        ),
        measured(
            "mask_share_of_smollm2_step_10m", mask_ms / figures.model_step_ms[SMOLLM2], "share"
        ),
        measured("mask_growth_10k_to_10m", mask_ms / figures.mask_ms[smallest], "times"),
        Measure(
            measure="rebuild_s_per_million",
            value=figures.merge_s / millions,
            unit="s",
            higher_is_better=False,
            peer="full rebuild, as STATIC",
            peer_value=figures.static_s / millions,
        ),
        measured_over(
            "step_over_dict_trie",
            figures.dict_step_ms / figures.trie_step_ms,
            "dict trie, prefix_allowed_tokens_fn",
        ),
    ]

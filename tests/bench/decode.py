"""Beam search beside Hugging Face's constrained generation: same model, dtype, beams, live videos, prompts and machine.

100,000 live semantic IDs of four levels, distinct prompts of 700 random tokens, one torch thread. Each side runs at
several batch sizes, and its best counts; SmolLM2's peer at few of them, since it runs a prompt once per beam. The
latency is that of one request at a time. Takes several minutes on a quiet core; `BENCH_SCALE=0.05`
tries it small, and says nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.base_models import NANO_MODEL, SMOLLM2, extended_lrm
from models.beam_search import beam_search
from models.lrm import Lrm, build_lrm
from models.semantic_id import SemanticIdSpace, format_semantic_id
from models.trie import LiveTrie, TrieView
from tests.bench.measure import Measure, measured
from tests.bench.parts.generate_peer import Found, GeneratePeer

PEER = "Hugging Face generate"
SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=(256, 128, 64), disambiguation_size=64)
LIVE_VIDEOS, PROMPT_TOKENS, TOP_K = 100_000, 700, 10
BEAM_WIDTHS = (10, 50)
CODE_DIM = 64
SEED = 0

Prompts = list[list[int]]
Search = Callable[[Prompts], list[Found]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is run of one model.

    Attributes:
        batches: prompts of one call, ours.
        peer_batches: of the peer, by beam width.
        latencies: requests of which the latency is taken.
    """

    batches: tuple[int, ...]
    peer_batches: dict[int, tuple[int, ...]]
    latencies: int


PLANS = {
    NANO_MODEL: Plan(
        batches=(1, 2, 4, 8), peer_batches={10: (1, 2, 4, 8), 50: (1, 2, 4, 8)}, latencies=200
    ),
    SMOLLM2: Plan(batches=(1, 4), peer_batches={10: (1, 2), 50: (1,)}, latencies=16),
}


def measure() -> list[Measure]:
    """Search with nano and with SmolLM2, at either beam width, beside the peer."""
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    torch.set_num_threads(1)  # what a replica has by default
    measures = []
    for base_model, plan in PLANS.items():
        lrm = begin(base_model)
        bench = Decoding(
            lrm,
            some_semantic_ids(max(1000, round(scale * LIVE_VIDEOS))),
            prompt_tokens=max(20, round(scale * PROMPT_TOKENS)),
        )
        suffix = "" if base_model == NANO_MODEL else "_smollm2"
        measures += bench.measures(plan, suffix=suffix, latencies=round(scale * plan.latencies))
    return measures


def begin(base_model: str) -> Lrm:
    """Return a model that speaks the codes; what it says of them does not matter for its speed."""
    if base_model == NANO_MODEL:
        return build_lrm([f"word{at} {at % 97} topic{at % 701}" for at in range(4000)], SPACE)
    torch.manual_seed(SEED)
    vectors = [torch.randn(size, CODE_DIM) for size in SPACE.codebook_sizes]
    return extended_lrm(base_model, SPACE, vectors)


def some_semantic_ids(count: int, space: SemanticIdSpace = SPACE) -> NDArray[np.int64]:
    """Return distinct semantic IDs, of which some share all but the last code."""
    rng = np.random.default_rng(SEED)
    cells = rng.choice(np.prod(space.codebook_sizes), size=-(-count * 2 // 3), replace=False)
    first_NL = np.stack([*np.unravel_index(cells, space.codebook_sizes), np.zeros_like(cells)], 1)
    second_NL = first_NL[: count - len(first_NL)].copy()
    second_NL[:, -1] = 1
    return np.concatenate([first_NL, second_NL])


class Decoding:
    """One model with its live videos, ours and the peer's way to search them, and prompts that none has seen."""

    def __init__(self, lrm: Lrm, semantic_ids_NL: NDArray[np.int64], *, prompt_tokens: int) -> None:
        self._lrm, self._prompt_tokens = lrm, prompt_tokens
        self._rng = np.random.default_rng(SEED)
        trie = LiveTrie(lrm.space)
        names = [f"v{at}" for at in range(len(semantic_ids_NL))]
        trie.insert_many(semantic_ids_NL, names, [0] * len(names))
        self._view: TrieView = trie.view
        self._peer = GeneratePeer(lrm, semantic_ids_NL)

    def measures(self, plan: Plan, *, suffix: str, latencies: int) -> list[Measure]:
        """Return requests/s beside the peer's, the latency, and how far both found the same."""
        measures, agreements = [], []
        for beam_width in BEAM_WIDTHS:
            name = f"beam{beam_width}{suffix}"
            ours, theirs = self._searches(beam_width)
            batches, peer_batches = plan.batches, plan.peer_batches[beam_width]
            for search in (ours, theirs):  # what is done once, is done before
                search(self._prompts(1, tokens=10))
            rates, peer_rates = {}, {}
            for batch in sorted({*batches, *peer_batches}):
                prompts = self._prompts(batch)
                if batch in peer_batches:
                    peer_rates[batch], expected = _rate(theirs, prompts)
                    _say(f"{name}: {PEER}, {batch} at a time: {peer_rates[batch]:.3g} requests/s")
                    found = ours(prompts)
                    agreements += [*map(agreement, found, expected)]
                    if batch == 1:
                        _show(name, found[0], expected[0])
                if batch in batches:
                    again = [_rate(ours, prompts)[0] for _ in range(3 if suffix == "" else 1)]
                    rates[batch] = float(np.median(again))
                    _say(f"{name}: ours, {batch} at a time: {rates[batch]:.3g} requests/s")
            measures.append(
                Measure(
                    measure=f"requests_per_s_{name}",
                    value=max(rates.values()),
                    unit="requests/s",
                    higher_is_better=True,
                    peer=PEER,
                    peer_value=max(peer_rates.values()),
                )
            )
            if beam_width == BEAM_WIDTHS[0]:
                measures += self._latencies(ours, name, max(2, latencies))
        measures.append(
            measured(f"top10_agreement{suffix}", min(agreements), "share, lowest", more=True)
        )
        return measures

    def _latencies(self, search: Search, name: str, count: int) -> list[Measure]:
        taken_ms = [1000 / _rate(search, self._prompts(1))[0] for _ in range(count)]
        return [
            measured(f"p{percent}_ms_{name}", np.percentile(taken_ms, percent), "ms")
            for percent in (50, 99)
        ]

    def _prompts(self, count: int, *, tokens: int | None = None) -> Prompts:
        size = (count, tokens or self._prompt_tokens)
        drawn: Prompts = self._rng.integers(
            2, self._lrm.tokenizer.get_vocab_size(), size=size
        ).tolist()
        return drawn

    def _searches(self, beam_width: int) -> tuple[Search, Search]:
        def ours(prompts: Prompts) -> list[Found]:
            answers = beam_search(
                self._lrm.model,
                prompts,
                [self._view] * len(prompts),
                level_token_ids=self._lrm.level_token_ids,
                beam_width=beam_width,
                top_k=TOP_K,
                pad_token_id=self._lrm.pad_token_id,
            )
            return [[(one.semantic_id, one.log_prob) for one in found] for found in answers]

        def theirs(prompts: Prompts) -> list[Found]:
            return self._peer.search(prompts, beam_width=beam_width, top_k=TOP_K)

        return ours, theirs


def agreement(found: Found, expected: Found) -> float:
    """Return the share of the expected that was found, in whatever order."""
    wanted = {semantic_id for semantic_id, _ in expected}
    return len(wanted & {semantic_id for semantic_id, _ in found}) / len(wanted)


def _rate(search: Search, prompts: Prompts) -> tuple[float, list[Found]]:
    started = time.perf_counter()
    found = search(prompts)
    return len(prompts) / (time.perf_counter() - started), found


def _show(name: str, found: Found, expected: Found) -> None:
    table = Table("rank", "ours", "log_prob", PEER, "log_prob", title=f"{name}: the same prompt")
    for rank, (ours, theirs) in enumerate(zip(found, expected, strict=True), start=1):
        cells = [[format_semantic_id(one), f"{log_prob:.4f}"] for one, log_prob in (ours, theirs)]
        table.add_row(str(rank), *cells[0], *cells[1])
    Console(stderr=True).print(table)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")

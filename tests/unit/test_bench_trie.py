"""The trie's benchmark: that the peers constrain as ours does, what is measured, and how it adds up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.base_models import NANO_MODEL, SMOLLM2
from models.semantic_id import SemanticIdSpace
from models.trie import OVERLAY_MAX, LiveTrie
from models.trie_filters import Filters
from tests.bench import trie as bench
from tests.bench.parts import trie_run
from tests.bench.parts.trie_peers import DictTrie, static_index
from tests.bench.parts.trie_run import Figures, filled, mask_ms, semantic_ids, video_id

SMALL = SemanticIdSpace(codebook_version=1, codebook_sizes=(4, 3, 4), disambiguation_size=2)


def some_keys(count: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(0)
    rows = np.stack(np.unravel_index(rng.permutation(4 * 3 * 4 * 2)[:count], SMALL.level_sizes), 1)
    return SMALL.pack(rows)


def test_static_index_leads_to_exactly_the_live_semantic_ids() -> None:
    keys_N = some_keys(40)
    index = static_index(SMALL, np.sort(keys_N))
    found = []
    for number, prefix in enumerate(np.flatnonzero(index.dense).tolist()):
        rows = [(prefix, number)]
        for level in (2, 3):
            starts, tokens = index.row_starts[level - 2], index.tokens[level - 2]
            rows = [
                (before << SMALL.level_bits[level] | int(tokens[at]), at)
                for before, row in rows
                for at in range(starts[row], starts[row + 1])
            ]
        found += [key for key, _ in rows]
    assert found == sorted(keys_N.tolist())


def test_dict_trie_chooses_what_ours_does() -> None:
    keys_N = some_keys(40)
    trie = LiveTrie(SMALL)
    trie.insert_many(SMALL.unpack(keys_N), [str(key) for key in keys_N], [0] * len(keys_N))
    blocks = [torch.arange(5, 9), torch.arange(9, 12), torch.arange(12, 16), torch.arange(16, 18)]
    theirs = DictTrie(SMALL, keys_N, blocks)
    prefixes, sums, paths = np.zeros(1, np.int64), np.zeros(1), torch.zeros(1, 0, dtype=torch.int64)
    torch.manual_seed(0)
    for level, block in enumerate(blocks):
        logits_WV = torch.randn(len(prefixes), 18)
        chosen = theirs.step(paths, logits_WV, torch.from_numpy(sums))[:2].tolist()
        log_probs_WK = logits_WV.log_softmax(-1)[:, block].numpy()
        best = trie.view.best_children(prefixes, level, sums, log_probs_WK, count=2)
        ours = best.row_C * 18 + block.numpy()[best.code_C]
        assert sorted(chosen) == sorted(ours.tolist())
        prefixes, sums = best.prefix_C, best.log_probs_C
        newest = block[torch.from_numpy(best.code_C)][:, None]
        paths = torch.cat([paths[torch.from_numpy(best.row_C)], newest], dim=1)


def test_tries_of_the_benchmark_hold_what_they_are_said_to() -> None:
    keys_N = semantic_ids(500, seed=0)
    assert len(set(keys_N.tolist())) == 500
    trie = filled(keys_N)
    view = trie.view
    assert len(view) == 500
    assert view.video_id_of(int(keys_N[7])) == video_id(7)
    assert len(video_id(7)) == 11
    assert len(mask_ms(trie, Filters(languages=["l3"]), seed=0, repeats=2)) == 2
    assert len(view.filtered(Filters(languages=["l3"]))) == 25


def test_writes_are_all_timed_and_undone_by_nothing() -> None:
    keys_N = semantic_ids(1000, seed=0)
    trie = filled(keys_N)
    inserted, removed = trie_run._writes(trie, keys_N, 50)
    assert 0 < len(inserted) <= 50
    assert len(removed) == 13  # after every fourth
    untimed = OVERLAY_MAX // 2 + trie_run.LEFT_IN_OVERLAY
    assert len(trie) == 1000 + untimed + len(inserted) - 13


def test_figures_become_the_measures_of_the_report() -> None:
    figures = Figures(
        bytes_per_video=45.0,
        peak_bytes_per_video=90.0,
        insert_ms=[0.1] * 99 + [5.0] * 9,
        remove_ms=[0.01] * 100,
        merge_s=2.0,
        static_s=13.0,
        sort_s=1.0,
        mask_ms={10_000: 0.1, 10_000_000: 0.15},
        fresh_mask_ms=1.0,
        model_step_ms={NANO_MODEL: 6.0, SMOLLM2: 150.0},
        dict_step_ms=10.0,
        trie_step_ms=0.5,
    )
    measures = {one.measure: one for one in bench.as_measures(figures)}
    values = {name: one.value for name, one in measures.items()}
    assert values == pytest.approx(
        {
            "insert_ms": 5.0,
            "remove_ms": 0.01,
            "mb_per_million": 45.0,
            "peak_mb_per_million": 90.0,
            "mask_share_of_nano_step_10m": 0.025,
            "mask_share_of_smollm2_step_10m": 0.001,
            "mask_growth_10k_to_10m": 1.5,
            "rebuild_s_per_million": 0.2,
            "step_over_dict_trie": 20.0,
        }
    )
    assert measures["rebuild_s_per_million"].peer_value == pytest.approx(1.3)
    assert measures["rebuild_s_per_million"].ratio == pytest.approx(6.5)


def test_run_at_a_small_scale_measures_everything() -> None:
    figures = trie_run.run(0.0001, (NANO_MODEL,), writes=20, turns=1)
    assert list(figures.mask_ms) == [1000]
    assert figures.model_step_ms[NANO_MODEL] > 0
    assert min(figures.dict_step_ms, figures.trie_step_ms, figures.fresh_mask_ms) > 0
    assert min(*figures.insert_ms, *figures.remove_ms, figures.merge_s) > 0

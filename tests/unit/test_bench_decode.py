"""The decoding benchmark, on a tiny model: both sides find the same, and the measures carry their names."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench import decode
from tests.bench.parts.generate_peer import Found
from tests.lrm_factories import SPACE, tiny_lrm


def test_some_semantic_ids_are_distinct_and_some_share_a_cell() -> None:
    ids_NL = decode.some_semantic_ids(3000)
    assert len(np.unique(ids_NL, axis=0)) == len(ids_NL) == 3000
    assert len(np.unique(ids_NL[:, :-1], axis=0)) == 2000


def test_agreement_is_the_share_of_the_expected_that_was_found() -> None:
    expected: Found = [((at, 0), -1.0) for at in range(4)]
    assert decode.agreement(expected[::-1], expected) == 1.0
    assert decode.agreement([*expected[:3], ((9, 9), -1.0)], expected) == 0.75


def test_measures_of_a_tiny_model_name_the_peer_and_find_what_it_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With so few codes, a wider beam of the peer would hold dead ones, which no trie follows.
    monkeypatch.setattr(decode, "BEAM_WIDTHS", (2, 8))
    monkeypatch.setattr(decode, "TOP_K", 2)
    live = decode.some_semantic_ids(90, SPACE)
    bench = decode.Decoding(tiny_lrm(), live, prompt_tokens=12)
    plan = decode.Plan(batches=(1, 2), peer_batches={2: (1, 2), 8: (1,)}, latencies=2)
    found = {each.measure: each for each in bench.measures(plan, suffix="_tiny", latencies=2)}
    assert list(found) == [
        "requests_per_s_beam2_tiny",
        "p50_ms_beam2_tiny",
        "p99_ms_beam2_tiny",
        "requests_per_s_beam8_tiny",
        "top10_agreement_tiny",
    ]
    assert found["top10_agreement_tiny"].value == 1.0
    assert found["requests_per_s_beam8_tiny"].peer == "Hugging Face generate"

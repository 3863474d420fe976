"""The quantizer's benchmark: the page it keeps, what it compares, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from infra.errors import ConfigError
from tests.bench import quantizer
from tests.bench.parts.codebook_tables import page
from tests.codebook_factories import card

PROVENANCE = {
    "hardware": {"cores": 2.0, "cpu": "A processor"},
    "versions": {"python": "3.11.7", "torch": "2.0", "typer": "1.0"},
    "commit": "c0ffee",
}


def named(data: str, method: str, **changed: Any) -> dict[str, Any]:
    found = card(**changed)
    return found | {
        "notes": found["notes"] | {"data": data},
        "quantizer": {"method": method, "contrastive_weight": 0.0},
    }


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_page_has_a_row_for_each_codebook_and_measure() -> None:
    cards = [named("films", "rqvae"), named("films", "rkmeans"), named("songs", "rqvae")]
    text = page(cards, PROVENANCE)
    assert text.count("## films") == text.count("## songs") == 1
    assert len(lines_with(text, "| rqvae |")) == 2 * 3
    assert len(lines_with(text, "| rkmeans |")) == 3
    held_out = cards[0]["held_out"]
    assert lines_with(text, "| rqvae | 8 4 2 |", f"{held_out['uniqueness']:.2%}")
    times = held_out["meaning"]["quantizer"]["category"][0]["over_random"]
    assert lines_with(text, f"{times:.2f} (")


def test_page_says_on_what_it_was_measured() -> None:
    text = page([named("films", "rqvae")], PROVENANCE)
    assert lines_with(text, "2 cores of A processor", "torch 2.0", "commit c0ffee")
    assert "typer" not in text


def test_page_of_a_catalogue_without_watches_says_so_instead_of_a_table_of_nothing() -> None:
    text = page([named("films", "rqvae", judged=False)], PROVENANCE)
    assert text.count("not known here.") == 2
    assert "None" not in text


def test_every_row_of_a_table_has_as_many_cells_as_its_header() -> None:
    text = page([named("films", "rqvae", codebook_sizes=(4,) * 8)], PROVENANCE)
    for table in text.split("\n\n"):
        rows = [line.count("|") for line in table.splitlines() if line.startswith("|")]
        assert len(set(rows)) <= 1


def test_measures_compare_held_out_videos_with_residual_kmeans() -> None:
    cards = {
        name: [named(name, "rqvae"), named(name, "rkmeans", num_fitted=20)]
        for name in ("movielens", "beauty", "youtube")
    }
    found = {each.measure: each for each in quantizer._measures(cards)}
    assert list(found) == [
        "uniqueness_movielens", "uniqueness_beauty", "prefix1_agreement_over_random_movielens",
        "prefix1_agreement_over_random_beauty", "prefix1_agreement_over_random_youtube",
    ]  # fmt: skip
    ours, theirs = cards["beauty"]
    measure = found["uniqueness_beauty"]
    assert (measure.value, measure.peer_value) == (
        ours["held_out"]["uniqueness"],
        theirs["held_out"]["uniqueness"],
    )
    assert {each.peer for each in found.values()} == {"residual k-means"}


def test_folder_that_is_not_set_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FRESHET_DATA__YOUTUBE_TRENDING", raising=False)
    with pytest.raises(ConfigError, match="FRESHET_DATA__YOUTUBE_TRENDING"):
        quantizer.measure()

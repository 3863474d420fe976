"""The quantizer: how unique and how telling its codes are on three data sets, beside residual k-means.

Every codebook is fitted on the earliest 80 % of a catalogue and judged by the rest. The cards are kept as tables in
`tests/bench/tables/quantizer.md`. `FRESHET_DATA__BEAUTY` and `FRESHET_DATA__YOUTUBE_TRENDING` name the folders of two
of the data sets; unset, nothing is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.provenance import provenance
from infra.settings import Settings, load_settings
from infra.storage import ObjectStore, write_atomically
from models.encoders import Encoders
from tests.bench.measure import Measure
from tests.bench.parts.codebook_tables import page
from workers.bootstrap_codebook import fit_encoded
from workers.bootstrap_data import (
    DATA_NAMES,
    DataSet,
    catalogue_of,
    later_part,
    load_data,
    split_catalogue,
)
from workers.bootstrap_run import quantizer_config
from workers.catalogue_encoding import encode_catalogue, publish_encoders

TABLES = Path(__file__).parent / "tables" / "quantizer.md"
SHARE = 0.8
LEVELS = (3, 5, 8)
# Method, and whether it learns from watches as well.
ARMS = (("rqvae", False), ("rqvae", True), ("rkmeans", False))
OURS, PEER = "rqvae", "rkmeans"
PEER_NAME = "residual k-means"
MEASURED_LEVELS = 3
UNIQUENESS_OF = ("movielens", "beauty")

Card = dict[str, Any]


def measure() -> list[Measure]:
    """Fit every method with every number of levels to every data set, keep the tables, and return the measures."""
    settings = load_settings()
    # The smallest first, so that a missing folder is named at once.
    data_sets = [load_data(name, settings) for name in reversed(DATA_NAMES)][::-1]
    folder = settings.var_dir / "bench" / "quantizer"
    store = ObjectStore(str(folder / "store"))
    encoders = Encoders(publish_encoders(store, folder / "cache"))
    cards = {data.name: _cards(data, encoders, settings) for data in data_sets}
    everything = [card for of_data in cards.values() for card in of_data]
    write_atomically(TABLES, page(everything, provenance()).encode())
    return _measures(cards)


def _cards(data: DataSet, encoders: Encoders, settings: Settings) -> list[Card]:
    earlier, rest = split_catalogue(data.timeline, SHARE)
    later = later_part(data, earlier, rest)
    uploads = catalogue_of(earlier)
    _say(f"{data.name}: encode {len(uploads):,} videos and {len(later.held_out):,} held out")
    catalogue = encode_catalogue(encoders, uploads, later.held_out, settings, progress=_ignore)
    cards = []
    for num_levels in LEVELS:
        for method, co_watching in ARMS:
            if co_watching and not earlier.watches():
                continue
            _say(f"{data.name}: fit {method}, {num_levels} levels" + ", co-watching" * co_watching)
            coded = fit_encoded(
                catalogue,
                quantizer_config(method, num_levels, co_watching=co_watching),
                watches=earlier.watches(),
                later=later,
                encoders_sha256=encoders.manifest.digest,
                codebook_version=1,
                seed=settings.seed,
                progress=_ignore,
            )
            cards.append(coded.card)
    return cards


def _measures(cards: dict[str, list[Card]]) -> list[Measure]:
    found = []
    for name in UNIQUENESS_OF:
        ours, theirs = (
            _card(cards[name], method)["held_out"]["uniqueness"] for method in (OURS, PEER)
        )
        found.append(_compared(f"uniqueness_{name}", ours, theirs, "share"))
    for name, of_data in cards.items():
        ours, theirs = (_prefix1(_card(of_data, method)) for method in (OURS, PEER))
        found.append(_compared(f"prefix1_agreement_over_random_{name}", ours, theirs, "times"))
    return found


def _card(cards: Sequence[Card], method: str) -> Card:
    return next(
        card
        for card in cards
        if card["quantizer"]["method"] == method
        and not card["quantizer"]["contrastive_weight"]
        and len(card["codebook_sizes"]) == MEASURED_LEVELS
    )


def _prefix1(card: Card) -> float:
    return float(card["held_out"]["meaning"]["quantizer"]["category"][0]["over_random"])


def _compared(name: str, ours: float, theirs: float, unit: str) -> Measure:
    return Measure(
        measure=name,
        value=ours,
        unit=unit,
        higher_is_better=True,
        peer=PEER_NAME,
        peer_value=theirs,
    )


def _ignore(stage: str, share: float) -> None:
    """Take a fit's progress, of which a line per fit is told already."""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()

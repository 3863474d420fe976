"""The benchmark runner: what it writes, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench import run
from tests.bench.measure import Measure


def rate(value: float, peer_value: float | None = None, *, name: str = "rate_per_s") -> Measure:
    return Measure(
        measure=name,
        value=value,
        unit="1/s",
        higher_is_better=True,
        peer=None if peer_value is None else "peer",
        peer_value=peer_value,
    )


def test_run_writes_where_it_was_measured_and_every_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("tests.bench.tides")
    monkeypatch.setattr(module, "measure", lambda: [rate(5), rate(6, 3)], raising=False)
    monkeypatch.setitem(sys.modules, "tests.bench.tides", module)

    report = json.loads(run.run("tides", tmp_path).read_text())

    assert set(report) == {"hardware", "versions", "commit", "measures"}
    assert report["hardware"]["cores"] > 0
    assert report["versions"]["python"].startswith("3.11.")
    assert report["measures"] == [
        {"measure": "rate_per_s", "value": 5, "unit": "1/s"},
        {"measure": "rate_per_s", "value": 6, "unit": "1/s", "peer": "peer", "peer_value": 3, "ratio": 2},
    ]  # fmt: skip


def test_run_unknown_name_is_refused_with_the_names_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run.main(["no_such_benchmark"]) == 2
    assert run.main([]) == 2
    assert "broker" in run.available()
    assert capsys.readouterr().err.count("broker") == 2


def test_ratio_above_one_means_better_whichever_way_is_better() -> None:
    slow_peer = Measure(
        measure="p99_ms", value=2, unit="ms", higher_is_better=False, peer="peer", peer_value=8
    )
    assert slow_peer.ratio == 4
    assert rate(8, 2).ratio == 4
    assert rate(2, 8).ratio == 0.25


def test_ratio_of_a_quotient_is_its_value() -> None:
    assert rate(3.5, 1, name="tokens_over_trainer").ratio == 3.5


def test_ratio_without_a_peer_or_with_nothing_to_divide_by_is_none() -> None:
    assert rate(3).ratio is None
    assert rate(3, 0).ratio is None


def test_measure_with_a_peer_but_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match="come together"):
        Measure(measure="x", value=1, unit="s", higher_is_better=False, peer="peer")

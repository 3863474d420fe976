"""What a backfill is told, and where an interrupted one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError
from workers.backfill import BackfillState
from workers.backfill_run import BackfillOptions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"from_offset": 0, "since_s": 60.0},
        {"to_offset": 5, "catalogue": Path("items.csv")},
        {"resume": True, "since_s": 60.0},
    ],
)
def test_options_that_do_not_say_what_to_backfill_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="say what to backfill"):
        BackfillOptions(**options)


@pytest.mark.parametrize(
    "options",
    [{"from_offset": 0, "to_offset": 5}, {"to_offset": 5}, {"since_s": 1.0}, {"resume": True}],
)
def test_options_that_say_one_thing_are_taken(options: dict[str, Any]) -> None:
    BackfillOptions(**options)


def test_state_is_what_was_saved_last_until_it_is_forgotten(tmp_path: Path) -> None:
    state = BackfillState(tmp_path / "var")
    state.save({"codebook_version": 3, "rows": 1})
    state.save({"codebook_version": 3, "rows": 2})
    assert BackfillState(tmp_path / "var").load(codebook_version=3)["rows"] == 2
    state.forget()
    with pytest.raises(ConfigError, match="nothing to resume"):
        state.load(codebook_version=3)


def test_state_of_another_codebook_is_refused(tmp_path: Path) -> None:
    state = BackfillState(tmp_path)
    state.save({"codebook_version": 3})
    with pytest.raises(ConfigError, match="codebook 3, the current one is 4: begin it anew"):
        state.load(codebook_version=4)

from __future__ import annotations

from typing import Any

import pytest

from workers.closed_loop_report import missing_stages

WELL: dict[str, Any] = {
    "requests": 10, "requests_failed": 0, "errors": [], "requests_of_another_arm": 0,
    "answered_without_model": 0, "watches": 5, "watches_in_shards": 5, "uploads": 4, "uploads_servable": 4,
    "dead_letters": 0, "refreshes": {"lrm": 1, "two_tower_hash": 2},
}  # fmt: skip


def test_a_run_in_which_everything_happened_misses_nothing() -> None:
    assert missing_stages(WELL) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"requests": 0}, "no request was sent"),
        ({"requests_failed": 2, "errors": ["503"]}, "2 requests failed: ['503']"),
        ({"requests_of_another_arm": 1}, "1 requests were answered by another arm"),
        ({"answered_without_model": 3}, "3 requests were answered without a model"),
        ({"watches": 0, "watches_in_shards": 0}, "nothing was watched"),
        ({"uploads": 0, "uploads_servable": 0}, "nothing was uploaded"),
        ({"uploads_servable": 3}, "3 of 4 uploads became servable"),
        ({"watches_in_shards": 4}, "4 of 5 watches are in shards"),
        ({"dead_letters": 1}, "1 records were refused"),
        ({"refreshes": {"lrm": 0, "two_tower_hash": 2}}, "lrm was never refreshed"),
    ],
)
def test_what_did_not_happen_is_named(changed: dict[str, Any], words: str) -> None:
    assert missing_stages(WELL | changed) == [words]

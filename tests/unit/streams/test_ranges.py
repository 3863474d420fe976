from __future__ import annotations

import pytest

from infra.errors import ConfigError
from streams.ranges import parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 7d ", 604_800)]
)
def test_duration_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1w", "1h30m"])
def test_duration_of_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 90s, 30m, 2h or 7d"):
        parse_duration_s(text)

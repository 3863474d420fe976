from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.body_limits import MAX_BODY_BYTES, depth_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(JSON, st.booleans())
def test_depth_is_that_of_the_parsed_value(value: Any, ascii_only: bool) -> None:
    assert depth_of(json.dumps(value, ensure_ascii=ascii_only).encode()) == depth(value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b"", 0), (b'"[[[["', 0), (b'["\\"[["]', 1), (b"[" * 100, 100), (b'"[[[', 0), (b'[{"a\\', 2)],
)
def test_depth_of_what_is_no_json(body: bytes, expected: int) -> None:
    assert depth_of(body) == expected


@pytest.mark.parametrize(
    "piece", [b'\\"', b'"', b"[", b'["', b'"\\', b"\\"], ids=lambda piece: piece.decode()
)
def test_depth_of_the_longest_body_is_found_without_going_back(piece: bytes) -> None:
    # Quadratic work on half a megabyte would take hours; whoever waits that long is stopped by the test's timeout.
    body = b'"' + piece * (MAX_BODY_BYTES // len(piece))
    assert depth_of(body + b"\\") <= len(body)

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DecodeError
from streams.codec import decode
from streams.events import SURFACES, ImpressionsShown
from streams.impressions import decode_shown

ANSWER: dict[str, Any] = {
    "event_time_ms": 5, "request_id": "r", "user_id": "u", "surface": "home", "arm": "lrm",
    "model_version": 1, "codebook_version": 2, "event_id": "e",
    "items": [{"video_id": "v", "position": 0, "source": "lrm", "age_s": 1.5, "new": True}],
}  # fmt: skip
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, "", "1", 1, -1, 1.0, 1.5, True, [], {}, "home", 2**70, "x" * 300, "\u00e9"]
)


def outcome(decoded: Any) -> Any:
    return decoded if isinstance(decoded, str) else (
        decoded.event_time_ms, decoded.surface, decoded.arm,
        [(item.video_id, item.new) for item in decoded.items],
    )  # fmt: skip


def tried(decoder: Any, value: bytes | None) -> Any:
    try:
        return outcome(decoder(value))
    except DecodeError as error:
        return error.reason


def both(value: bytes | None) -> tuple[Any, Any]:
    return tried(decode_shown, value), tried(lambda one: decode(ImpressionsShown, one), value)


@given(st.sampled_from([*ANSWER, "unknown", "schema_version"]), ODD, st.booleans())
def test_mirror_says_what_the_contract_says_of_any_field(
    field: str, value: Any, without: bool
) -> None:
    changed = {**ANSWER, field: value}
    if without:
        del changed[field]
    mirror, contract = both(json.dumps(changed).encode())
    assert mirror == contract


@given(st.sampled_from([*ANSWER["items"][0], "unknown"]), ODD, st.booleans())
def test_mirror_says_what_the_contract_says_of_any_field_of_an_item(
    field: str, value: Any, without: bool
) -> None:
    item = {**ANSWER["items"][0], field: value}
    if without:
        del item[field]
    mirror, contract = both(json.dumps({**ANSWER, "items": [item]}).encode())
    assert mirror == contract


@pytest.mark.parametrize("surface", SURFACES)
def test_every_surface_is_taken(surface: str) -> None:
    assert decode_shown(json.dumps({**ANSWER, "surface": surface}).encode()).surface == surface


@pytest.mark.parametrize("value", [None, b"", b"{", b"\xff", b"[]", b"1"])
def test_what_is_no_answer_is_refused_as_by_the_contract(value: bytes | None) -> None:
    mirror, contract = both(value)
    assert mirror == contract
    assert isinstance(mirror, str)

"""The fast decoder against the contract."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DecodeError
from streams.codec import decode_watch_event
from streams.events import SURFACES, UserErased, WatchEvent
from streams.watches import Watch, decode_watch

WATCH: dict[str, Any] = {
    "event_id": "e1",
    "event_time_ms": 1_700_000_000_000,
    "user_id": "u1",
    "video_id": "v1",
    "surface": "home",
    "watched_s": 30.5,
    "duration_s": 60,
}


def _verdict(decoder: Any, value: bytes | None) -> Any:
    """Return what a decoder makes of the bytes, in a form that compares."""
    try:
        event = decoder(value)
    except DecodeError as error:
        return error.reason, str(error)
    if isinstance(event, UserErased):
        return event.model_dump(mode="json")
    return event if isinstance(event, dict) else msgspec.to_builtins(event)


def _by_contract(value: bytes | None) -> dict[str, Any]:
    return decode_watch_event(value).model_dump(mode="json")


odd_numbers = st.one_of(
    st.integers(-2, 2),
    st.floats(),
    st.integers(10**18, 10**40),
    st.sampled_from([1e6, 1e6 + 1, 4_102_444_800_000, 4_102_444_800_001, 1.0, 0.5, -0.0, 1e-320]),
)
odd_texts = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["", "1", "1.5", "true", "no", "home", " home", "\x00", "é" * 256, "é" * 257]),
    st.integers(0, 1100).map("x".__mul__),
)
odd_values = st.recursive(
    st.one_of(st.none(), st.booleans(), odd_numbers, odd_texts),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(odd_texts, inner)),
    max_leaves=4,
)
users = st.one_of(
    odd_values,
    st.dictionaries(st.sampled_from(["region", "age", "gender", "device", "language"]), odd_values),
)
fields = {name: odd_values for name in Watch.__struct_fields__} | {
    "user": users,
    "surface": st.one_of(st.sampled_from(SURFACES), odd_texts),
    "type": st.one_of(st.sampled_from(["watch", "erased"]), odd_values),
    "unknown": odd_values,
}
changes = st.dictionaries(st.sampled_from(sorted(fields)), st.none(), max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen})
)


@settings(deadline=None)
@given(changes, st.sets(st.sampled_from(sorted(WATCH)), max_size=1), st.booleans())
def test_decoder_and_contract_agree_on_any_change_of_a_good_watch(
    changed: dict[str, Any], missing: set[str], escaped: bool
) -> None:
    document = {name: value for name, value in (WATCH | changed).items() if name not in missing}
    document.setdefault("event_id", "e1")  # a missing one is drawn anew by each decoder
    value = json.dumps(document, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    assert _verdict(decode_watch, value) == _verdict(_by_contract, value)


@settings(deadline=None)
@given(st.data())
def test_decoder_and_contract_agree_on_damaged_bytes(data: st.DataObject) -> None:
    value = bytearray(json.dumps(WATCH | {"query": "çok güzel", "x": [1, {"y": "ü"}]}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(value) - 1))
        value[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    verdict, expected = (_verdict(each, bytes(value)) for each in (decode_watch, _by_contract))
    if isinstance(verdict, dict) and isinstance(expected, dict) and b'"event_id"' not in value:
        verdict["event_id"] = expected["event_id"]
    assert verdict == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{", "invalid_json"),
        (b'{"x":"\xff",' + json.dumps(WATCH).encode()[1:], "invalid_json"),
        (
            b'{"x":' + b"[" * 300 + b"]" * 300 + b"," + json.dumps(WATCH).encode()[1:],
            "invalid_event",
        ),
        (b'{"x":' + b"1" * 5000 + b"," + json.dumps(WATCH).encode()[1:], "invalid_json"),
        (json.dumps(WATCH | {"schema_version": 2}).encode(), "unknown_schema_version"),
        (json.dumps(WATCH | {"surface": "billboard"}).encode(), "invalid_event"),
        (json.dumps(WATCH | {"watched_s": -1}).encode(), "invalid_event"),
        (b" " * 8_000_001, "too_large"),
    ],
)
def test_decoder_refuses_with_the_reason_of_the_contract(value: bytes | None, reason: str) -> None:
    assert _verdict(decode_watch, value)[0] == reason
    assert _verdict(decode_watch, value) == _verdict(_by_contract, value)


def test_decoder_accepts_what_only_the_contract_can_coerce() -> None:
    watch = decode_watch(json.dumps(WATCH | {"watched_s": "12.5", "liked": "yes"}).encode())
    assert isinstance(watch, Watch)
    assert (watch.watched_s, watch.liked) == (12.5, True)


def test_erasure_is_told_from_a_watch_by_its_type_alone() -> None:
    erasure = {"type": "erased", "event_id": "x", "event_time_ms": 5, "user_id": "u1"}
    assert decode_watch(json.dumps(erasure).encode()) == UserErased.model_validate(erasure)
    assert isinstance(decode_watch(json.dumps(WATCH | {"type": "erased"}).encode()), UserErased)
    with pytest.raises(DecodeError) as refused:
        decode_watch(json.dumps(erasure | {"type": "watch"}).encode())
    assert refused.value.reason == "invalid_event"


def test_mirror_has_the_fields_and_bounds_of_the_contract() -> None:
    contract = WatchEvent.model_json_schema()
    _, mirrors = msgspec.json.schema_components([Watch])
    mirror = mirrors["Watch"]
    assert mirror["properties"].keys() == contract["properties"].keys()
    # The contract draws a missing event_id; the mirror leaves that to it.
    assert set(mirror["required"]) == {*contract["required"], "event_id"}
    for name in mirror["properties"]:
        assert _bounds(mirror["properties"][name]) == _bounds(contract["properties"][name]), name
    features, expected = mirrors["UserFeatures"], contract["$defs"]["UserFeatures"]
    assert {name: _bounds(found) for name, found in features["properties"].items()} == {
        name: _bounds(found) for name, found in expected["properties"].items()
    }


def _bounds(schema: dict[str, Any]) -> Any:
    """Return the parts of a JSON Schema that decide what is accepted."""
    if "$ref" in schema:
        return "reference"
    if "anyOf" in schema:
        return sorted((_bounds(each) for each in schema["anyOf"]), key=str)
    kept = {"type", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum"}
    bounds = {name: schema[name] for name in sorted(kept & schema.keys())}
    allowed = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
    return bounds if allowed is None else sorted(allowed)

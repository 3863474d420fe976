"""The compiled scanner against the contract: what it accepts, the contract accepts with the same values."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DecodeError
from streams.codec import decode_watch_event
from streams.events import SURFACES, WatchEvent
from streams.watch_scan import MAX_SCANNED_BYTES, TEXTS, event_fingerprint, scan_watches
from streams.watches import decode_features
from tests.unit.streams.test_watches import WATCH, changes

Found = dict[str, Any] | None
EVERYTHING = WATCH | {
    "schema_version": 1,
    "type": "watch",
    "liked": True,
    "request_id": "r",
    "context_video_id": "v0",
    "query": "cats",
    "arm": "b",
    "user": {"region": "de", "age": 7},
    "not ours": "x",
    "nor this": 1.5,
}


def scanned(values: list[bytes], key: bytes = b"u1") -> list[Found]:
    """Return what the scanner has of each value; None where it leaves it to the contract."""
    scan = scan_watches([key] * len(values), values)
    return [_fields(scan, row) if scan.is_watch_R[row] else None for row in range(len(values))]


def _fields(scan: Any, row: int) -> dict[str, Any]:
    time_ms, watched_s, duration_s, surface, liked = scan.numbers_RN[row].tolist()
    found = {
        "event_time_ms": time_ms,
        "watched_s": watched_s,
        "duration_s": duration_s,
        "surface": SURFACES[int(surface)],
        "liked": bool(liked),
        "fingerprint": int(scan.fingerprint_R[row]),
    }
    for text, begin, length in zip(TEXTS, scan.begins_RT[row], scan.lengths_RT[row], strict=True):
        found[text] = None if length < 0 else scan.buffer[begin : begin + length].decode()
    return found


def by_contract(value: bytes, key: bytes = b"u1") -> Found:
    """Return the same of what the contract makes of it; None for what it refuses."""
    try:
        event = decode_watch_event(value)
    except DecodeError:
        return None
    if not isinstance(event, WatchEvent) or event.user_id.encode() != key:
        return None
    fields = event.model_dump(exclude={"schema_version", "type"})
    return fields | {"fingerprint": event_fingerprint(event.user_id, event.event_id)}


def agrees(value: bytes, found: Found) -> bool:
    """Return whether the record is left to the contract, or the same as what the contract makes of it.

    The inside of a user's features is for whoever takes them.
    """
    if found is None:
        return True
    try:
        features = found["user"] and decode_features(found["user"])
    except msgspec.DecodeError:
        return True
    return by_contract(value) == found | {"user": features and msgspec.structs.asdict(features)}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), ("\n ,\t", " : ")])
@pytest.mark.parametrize("document", [WATCH, EVERYTHING, dict(reversed(EVERYTHING.items()))])
def test_plain_watch_is_read_whole(document: dict[str, Any], separators: tuple[str, str]) -> None:
    value = json.dumps(document, separators=separators).encode()
    [found] = scanned([value])
    assert found is not None
    assert agrees(value, found)
    assert (found["user"] is None) == ("user" not in document)


def test_text_that_is_not_ascii_is_read_too() -> None:
    document = WATCH | {"query": "猫" * 1024, "user_id": "ü" * 256}
    value = json.dumps(document, ensure_ascii=False).encode()
    [found] = scanned([value], key=("ü" * 256).encode())
    assert found is not None
    assert found["query"] == "猫" * 1024
    [none] = scanned([value.replace("猫".encode(), "猫猫".encode(), 1)], key=("ü" * 256).encode())
    assert none is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"{}",
        b'{"event_id":"e1"',
        json.dumps(WATCH).encode()[:-1],
        json.dumps(WATCH).encode() + b"x",
        json.dumps(WATCH).encode() + json.dumps(WATCH).encode(),
        json.dumps([WATCH]).encode(),
        json.dumps(WATCH | {"event_id": 'quote " in it'}).encode(),
        json.dumps(WATCH | {"user_id": "u2"}).encode(),
        json.dumps(WATCH | {"x": [1]}).encode(),
        json.dumps(WATCH).encode().replace(b'"surface"', b'"event_id":"e2","surface"'),
        json.dumps(WATCH).encode().replace(b"30.5", b"3e1"),
        json.dumps(WATCH).encode().replace(b"30.5", b"030.5"),
        json.dumps(WATCH).encode().replace(b"30.5", b"30."),
        json.dumps(WATCH).encode().replace(b"30.5", b"30.500000000000000"),
        json.dumps(WATCH).encode().replace(b"30.5", b"-30.5"),
        json.dumps(WATCH).encode().replace(b"30.5", b"NaN"),
        json.dumps(WATCH).encode().replace(b"e1", b"e\xff"),
        json.dumps(WATCH).encode().replace(b"e1", b"e\x01"),
        json.dumps(WATCH | {"query": "x" * MAX_SCANNED_BYTES}).encode(),
    ],
)
def test_everything_else_is_left_to_the_contract(value: bytes) -> None:
    good = json.dumps(WATCH).encode()
    assert [found is None for found in scanned([good, value, good])] == [False, True, False]


def test_record_does_not_borrow_from_the_next_one() -> None:
    good = json.dumps(WATCH).encode()
    for cut in range(1, len(good)):
        halves = scanned([good[:cut], good[cut:], good])
        assert [found is None for found in halves] == [True, True, False], cut
    snowman = json.dumps(WATCH | {"event_id": "☃"}, ensure_ascii=False).encode()
    for cut in range(1, len(snowman)):
        assert scanned([snowman[:cut], snowman[cut:]]) == [None, None], cut


def test_records_without_key_or_value_are_left_to_the_contract() -> None:
    good = json.dumps(WATCH).encode()
    scan = scan_watches([None, b"u1", b"u1"], [good, None, good])
    assert scan.is_watch_R.tolist() == [False, False, True]
    assert scan_watches([], []).is_watch_R.tolist() == []


@settings(deadline=None)
@given(st.lists(st.tuples(changes, st.booleans(), st.integers(0, 2)), min_size=1, max_size=4))
def test_scanner_and_contract_agree_on_any_changes_of_good_watches(
    drawn: list[tuple[dict[str, Any], bool, int]],
) -> None:
    values = [
        json.dumps(
            EVERYTHING | changed,
            ensure_ascii=escaped,
            separators=[None, (",", ":"), (" ,", ": ")][at],
        ).encode("utf-8", "surrogatepass")
        for changed, escaped, at in drawn
    ]
    for value, found in zip(values, scanned(values), strict=True):
        assert agrees(value, found)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_scanner_and_contract_agree_on_damaged_bytes(data: st.DataObject) -> None:
    values = []
    for _ in range(data.draw(st.integers(1, 3))):
        value = bytearray(json.dumps(EVERYTHING, ensure_ascii=False).encode())
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, len(value) - 1))
            inserted = st.one_of(
                st.binary(max_size=2), st.sampled_from([b'"', b"0", b"9", b".", b"}", b" "])
            )
            value[at : at + data.draw(st.integers(0, 2))] = data.draw(inserted)
        values.append(bytes(value))
    for damaged, found in zip(values, scanned(values), strict=True):
        assert agrees(damaged, found)


@settings(deadline=None)
@given(st.decimals(0, 10**7, allow_nan=False, places=9).map(lambda number: f"{number:f}"))
def test_decimals_are_the_nearest_floats(number: str) -> None:
    value = json.dumps(WATCH).encode().replace(b"30.5", number.encode())
    [found] = scanned([value])
    assert agrees(value, found)
    assert (found is None) == (len(number.replace(".", "")) > 15 or float(number) > 1e6)


def test_fingerprints_tell_users_and_events_apart() -> None:
    found = {event_fingerprint(f"u{at % 100}", f"e{at // 100}") for at in range(20_000)}
    assert len(found) == 20_000
    assert 0 not in found
    assert len({each % 1024 for each in found}) == 1024


def test_records_of_nothing_but_blanks_are_each_looked_at_alone() -> None:
    blank = b" " * MAX_SCANNED_BYTES
    good = json.dumps(WATCH).encode()
    found = scanned([blank] * 5_000 + [good])  # 20 MB: minutes, if each were read to the end of all
    assert [each is None for each in found] == [True] * 5_000 + [False]

"""Fingerprints of event ids."""

from __future__ import annotations

from streams.fingerprints import NO_FINGERPRINT, text_fingerprint


def test_fingerprint_is_fnv_1a_with_its_halves_mixed() -> None:
    fnv_1a = 0xAF63DC4C8601EC8C  # of "a", from the algorithm's authors
    mixed = ((fnv_1a ^ (fnv_1a >> 32)) * 0x9E3779B97F4A7C15) & (1 << 64) - 1
    assert text_fingerprint("a") == mixed ^ (mixed >> 32)


def test_fingerprints_of_different_ids_differ() -> None:
    found = {text_fingerprint(f"event-{number}") for number in range(100_000)}
    assert len(found) == 100_000
    assert NO_FINGERPRINT not in found
    assert len({each % 1024 for each in found}) == 1024

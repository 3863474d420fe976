"""The partition of a key; that producers choose the same is tested on a real broker."""

from __future__ import annotations

import pytest

from streams.partitions import partition_of

# Kafka's own test vectors of Utils.murmur2, as signed 32-bit numbers.
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "hashed"), VECTORS.items())
def test_partition_is_kafkas_murmur2_made_positive_modulo_the_partitions(
    key: bytes, hashed: int
) -> None:
    for num_partitions in (1, 4, 7, 100_003):
        assert partition_of(key, num_partitions) == (hashed & 0x7FFFFFFF) % num_partitions

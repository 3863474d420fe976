"""Which partition a key lives in, so that a reader of one key need not read the rest; knows nothing of brokers.

Every producer here partitions by murmur2, as Java clients do (`streams.client`), so a key's partition is a function.
"""

from __future__ import annotations

_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF


def partition_of(key: bytes, num_partitions: int) -> int:
    """Return the partition that producers choose for `key`."""
    return (_murmur2(key) & 0x7FFFFFFF) % num_partitions


def _murmur2(data: bytes) -> int:
    """Return the 32-bit MurmurHash2 of `data`, as Kafka's own `Utils.murmur2` seeds and reads it."""
    hashed = _SEED ^ len(data)
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * _M & _MASK
        hashed = (hashed * _M & _MASK) ^ ((word ^ word >> 24) * _M & _MASK)
    if whole < len(data):
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    hashed = (hashed ^ hashed >> 13) * _M & _MASK
    return hashed ^ hashed >> 15

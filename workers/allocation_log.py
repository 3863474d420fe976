"""The allocator of each partition of `video.codes`, kept in `video.allocations`, a record per place.

Knows nothing of how codes come about and of what is made of a place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from infra.settings import KafkaSettings
from models.allocation import Allocator
from streams.client import TopicReader
from streams.codec import decode
from streams.codes import codes_key
from streams.events import CodeAllocated, CodesComputed
from streams.topics import ALLOCATIONS


class AllocationLog:
    """Places as a function of `video.codes`: whoever computes them, however often, comes to the same.

    Within one code tuple the k-th video in the order of a partition's log has place k, and is refused where k is not
    below the capacity. By induction over the log, no other place is ever computed or stored:

    - Known before record n: the places of all videos before it, which were durable when their records were acknowledged
      or were computed here; and those of some later ones, stored by somebody who then died or is further on.
    - Its video either has its place k already; or all places below k are taken, k itself is nobody else's, and so the
      lowest free place is k. So a batch of which any part was durable, a replay, and a worker that lost the partition
      without knowing all store what the owner stores, under the same keys: nobody has to be kept out.
    - Records that somebody else handled show as a gap in the offsets: the log is read to its end before going on.
    """

    def __init__(self, kafka: KafkaSettings, *, disambiguation_size: int) -> None:
        """Start with nothing read; `disambiguation_size` is how many videos may share their codes."""
        self._kafka = kafka
        self._capacity = disambiguation_size
        self._allocators: dict[int, Allocator] = {}
        self._handled_to: dict[int, int] = {}  # offsets in video.codes
        self._read_to: dict[tuple[str, int], int] = {}  # offsets in video.allocations

    def behind(self, records: Iterable[tuple[int, int]]) -> set[int]:
        """Return which partitions have to catch up before these records, (partition, offset) each, are handled."""
        handled_to = dict(self._handled_to)
        behind = set()
        for partition, offset in records:
            if offset > handled_to.get(partition, -1):
                behind.add(partition)
            handled_to[partition] = max(offset + 1, handled_to.get(partition, 0))
        return behind

    def advance(self, partition: int, offset: int) -> None:
        """Take note that a record of `video.codes` was handled."""
        self._handled_to[partition] = max(offset + 1, self._handled_to.get(partition, 0))

    def catch_up(self, partitions: Collection[int]) -> None:
        """Take in what the log holds of some partitions beyond what was read of it before.

        Blocks: until the log was read to its end.

        Raises:
            DecodeError: the log holds what this version cannot read; taken codes would be handed out again.
        """
        with TopicReader(
            self._kafka, [ALLOCATIONS], partitions=partitions, start=self._read_to
        ) as reader:
            for _, message in reader.read_to_end():
                self.take(message.partition(), message.value())
            self._read_to |= reader.next_offsets
        for partition in partitions:
            self._allocators.setdefault(partition, Allocator())

    def take(self, partition: int, value: bytes | None) -> None:
        """Take in one record of the log; raises like `catch_up`."""
        row = decode(CodeAllocated, value)
        self._allocators.setdefault(partition, Allocator()).restore(
            row.codebook_version, row.codes, row.disambiguation_code, row.video_id
        )

    def allocate(self, computed: CodesComputed, *, partition: int) -> tuple[int, bool]:
        """Return the video's disambiguation code, and whether it is new: then `code_allocated` is to be stored.

        Raises:
            DecodeError: with reason `codes_full`.
        """
        return self._allocators[partition].allocate(
            computed.codebook_version, computed.codes, computed.video_id, capacity=self._capacity
        )


def code_allocated(computed: CodesComputed, disambiguation_code: int) -> CodeAllocated:
    """Return the record of a place, to be stored in the partition that the video has in `video.codes`."""
    return CodeAllocated(
        codes=computed.codes,
        codebook_version=computed.codebook_version,
        disambiguation_code=disambiguation_code,
        video_id=computed.video_id,
    )


def place_key(row: CodeAllocated) -> str:
    """Return the key of a place's record, such as `1:228-204-19#0`."""
    return f"{codes_key(row.codebook_version, row.codes)}#{row.disambiguation_code}"

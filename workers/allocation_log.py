"""The allocator of each owned partition, kept in `video.allocations`; knows nothing of how codes come about.

Every code tuple belongs to one partition of `video.codes`, and `video.allocations` has the same partitions: whoever
owns the one is the only writer of the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from infra.clock import now_ms
from infra.settings import KafkaSettings
from models.allocation import Allocator
from streams.catalogue import POSITION_HEADER, semantic_id_key
from streams.client import TopicReader
from streams.codec import decode
from streams.codes import codes_key
from streams.events import CodesAllocated, CodesComputed, SemanticIdAssigned, to_json
from streams.topics import ALLOCATIONS, SEMANTIC_IDS
from workers.faust_app import Outgoing


class AllocationLog:
    """Allocators by partition: `ABSENT -> restore -> OWNED -> drop -> ABSENT`.

    What is in memory is always also in the log or about to be: a process that cannot write it must end.
    """

    def __init__(self, kafka: KafkaSettings, *, disambiguation_size: int) -> None:
        self._kafka = kafka
        self._capacity = disambiguation_size
        self._owned: dict[int, Allocator] = {}

    def missing(self, partitions: Iterable[int]) -> set[int]:
        """Return which of the partitions have to be restored before they are allocated from."""
        return set(partitions) - self._owned.keys()

    def restore(self, partitions: set[int]) -> None:
        """Rebuild the allocators of some partitions from the log.

        Blocks: until the log was read to its end.

        Raises:
            DecodeError: the log holds what this version cannot read; taken codes would be handed out again.
        """
        allocators = {partition: Allocator() for partition in partitions}
        with TopicReader(self._kafka, [ALLOCATIONS], partitions=partitions) as reader:
            for _, message in reader.read_to_end():
                row = decode(CodesAllocated, message.value())
                allocators[message.partition()].restore(
                    row.codebook_version, row.codes, row.video_ids
                )
        self._owned |= allocators

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget partitions that now belong to somebody else."""
        for partition in partitions:
            self._owned.pop(partition, None)

    def allocate(self, computed: CodesComputed, partition: int) -> tuple[int, Outgoing | None]:
        """Return the video's disambiguation code, and what must be durable before anyone hears of it.

        Delivery: idempotent; a video that has its code already gets it again, and nothing is to be written.

        Raises:
            DecodeError: with reason `codes_full`.
        """
        version, codes = computed.codebook_version, computed.codes
        allocator = self._owned[partition]
        code, grew = allocator.allocate(version, codes, computed.video_id, capacity=self._capacity)
        if not grew:
            return code, None
        row = CodesAllocated(
            codes=codes, codebook_version=version, video_ids=allocator.row(version, codes)
        )
        key = codes_key(version, codes).encode()
        return code, Outgoing(ALLOCATIONS, key, to_json(row), partition=partition)


def assignment(computed: CodesComputed, disambiguation_code: int) -> Outgoing:
    """Return the record that gives a video its semantic ID."""
    assigned = SemanticIdAssigned(
        **computed.model_dump(),
        disambiguation_code=disambiguation_code,
        assigned_time_ms=now_ms(),
    )
    key = semantic_id_key(computed.video_id, computed.codebook_version)
    return Outgoing(SEMANTIC_IDS, key.encode(), to_json(assigned))


def removal(video_id: str, codebook_version: int, *, position: int) -> Outgoing:
    """Return the tombstone of a removed video; its header says which upload it answers.

    Delivery: it may overtake the assignment of an upload that came just before it.
    """
    key = semantic_id_key(video_id, codebook_version)
    headers = {POSITION_HEADER: str(position).encode()}
    return Outgoing(SEMANTIC_IDS, key.encode(), None, headers=headers)

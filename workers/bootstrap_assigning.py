"""The semantic IDs of a bootstrap's catalogue, written as the uploads worker would write them.

Knows nothing of how the codebook was fitted and of what is learned from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from infra.clock import now_ms
from infra.errors import DecodeError
from infra.log import get_logger
from infra.settings import KafkaSettings
from models.allocation import Allocator
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send
from streams.codes import codes_key
from streams.events import CodesComputed, SemanticIdAssigned, to_json
from streams.partitions import partition_of
from streams.topics import ALLOCATIONS, CODES, SEMANTIC_IDS
from workers.allocation_log import code_allocated, place_key
from workers.partition_settler import PartitionSettler, Settlement


def assign(
    kafka: KafkaSettings, computed: Iterable[CodesComputed], capacity: int
) -> list[SemanticIdAssigned]:
    """Allocate and publish the catalogue's semantic IDs, allocations first; return what was assigned.

    A video beyond the capacity of its codes is left out, with a warning.

    Meant to run before the workers. An uploads worker that does run loses the partitions of `video.semantic_ids` to the
    bootstrap and ends, to be started again with the new codebook; what it settled of the new codebook_version meanwhile
    (a removal) is newer than the past, and stays.

    Delivery: killed before it returns, any part of it may be published; a bootstrap that is run again publishes anew,
    under the next codebook_version.
    """
    allocator, client = Allocator(), producer(kafka)
    assigned = []
    for one in computed:
        version, codes = one.codebook_version, one.codes
        try:
            code, new = allocator.allocate(version, codes, one.video_id, capacity=capacity)
        except (
            DecodeError
        ) as error:  # too many near-copies: refused as the uploads worker refuses one
            get_logger().warning("video_left_out", video_id=one.video_id, reason=error.reason)
            continue
        if new:
            row, key = code_allocated(one, code), codes_key(version, codes)
            at = partition_of(key.encode(), CODES.num_partitions(kafka))
            send(client, kafka, ALLOCATIONS, place_key(row), row, partition=at)
        assigned.append(
            SemanticIdAssigned(
                **one.model_dump(), disambiguation_code=code, assigned_time_ms=now_ms()
            )
        )
    flush(client)
    _settle(kafka, assigned)
    return assigned


def _settle(kafka: KafkaSettings, assigned: Iterable[SemanticIdAssigned]) -> None:
    by_partition: dict[int, list[Settlement]] = defaultdict(list)
    for each in assigned:
        key = semantic_id_key(each.video_id, each.codebook_version).encode()
        at = partition_of(key, SEMANTIC_IDS.num_partitions(kafka))
        by_partition[at].append(Settlement(key, to_json(each), each.upload_position))
    for partition, wanted in by_partition.items():
        settler = PartitionSettler(kafka, partition)
        settler.settle(wanted)
        settler.close()

"""The allocate loop: codes -> a disambiguation code -> an assignment, which is settled later.

Knows nothing of where codes come from, of removals, and of which assignment is a video's newest (`workers.settling`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from infra.clock import now_ms
from infra.errors import DecodeError
from streams.catalogue import position_header, semantic_id_key
from streams.codec import decode
from streams.events import CodesComputed, SemanticIdAssigned, to_json
from streams.topics import ALLOCATIONS, ASSIGNMENTS, CODES
from workers.allocation_log import AllocationLog, code_allocated, place_key
from workers.faust_app import Outgoing, Publisher
from workers.refusing import refused


class AllocateLoop:
    """What is made of each record of `video.codes`; it needs to hear nothing of rebalances."""

    def __init__(self, allocations: AllocationLog, publisher: Publisher) -> None:
        self._allocations = allocations
        self._publisher = publisher

    async def handle(self, events: list[Any]) -> None:
        """Give each coded video its semantic ID.

        Delivery: on return the places and the assignments are durable. Killed before that, any of both may be; the
        batch comes again and gives the same places, for the reason in `AllocationLog`.
        """
        at = [(event.message.partition, event.message.offset) for event in events]
        if behind := self._allocations.behind(at):
            await asyncio.to_thread(self._allocations.catch_up, behind)
        outgoing = [record for event in events for record in self._outcome(event)]
        await self._publisher.publish(outgoing)

    def _outcome(self, event: Any) -> list[Outgoing]:
        partition, offset = event.message.partition, event.message.offset
        try:
            computed = decode(CodesComputed, event.value)
            code, new = self._allocations.allocate(computed, partition=partition)
        except DecodeError as error:
            return [refused(CODES, event, error)]
        finally:
            self._allocations.advance(partition, offset)
        assigned = assignment(computed, code)
        return [_stored(computed, code, partition), assigned] if new else [assigned]


def _stored(computed: CodesComputed, code: int, partition: int) -> Outgoing:
    row = code_allocated(computed, code)
    return Outgoing(ALLOCATIONS, place_key(row).encode(), to_json(row), partition=partition)


def assignment(computed: CodesComputed, disambiguation_code: int) -> Outgoing:
    """Return the record that gives a video its semantic ID, to be settled."""
    assigned = SemanticIdAssigned(
        **computed.model_dump(),
        disambiguation_code=disambiguation_code,
        assigned_time_ms=now_ms(),
    )
    key = semantic_id_key(computed.video_id, computed.codebook_version)
    headers = position_header(computed.upload_position)
    return Outgoing(ASSIGNMENTS, key.encode(), to_json(assigned), headers=headers)

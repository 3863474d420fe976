from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.in_order import Batcher, handle_each


class FakeEvent:
    """Remembers that it was acknowledged."""

    def __init__(self, number: int, acked: list[int], partition: int = 0, *, size: int = 1) -> None:
        self.number = number
        self.value = b"x" * size
        self.message = SimpleNamespace(topic="t", partition=partition)
        self._acked = acked

    def ack(self) -> None:
        self._acked.append(self.number)


class FakeStream:
    """Gives its events, and remembers how many were taken."""

    def __init__(self, events: list[Any]) -> None:
        self._events = events
        self.taken = 0

    def noack(self) -> FakeStream:
        return self

    async def events(self) -> AsyncIterator[Any]:
        for event in self._events:
            self.taken += 1
            yield event


class FakeApp:
    """Remembers why it was crashed."""

    reason: BaseException | None = None

    async def crash(self, reason: BaseException) -> None:
        self.reason = reason


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_slow_event_holds_up_no_other_and_is_passed_by_no_acknowledgement() -> None:
    acked: list[int] = []
    handled: list[int] = []
    slow = asyncio.Event()

    async def handle(event: FakeEvent) -> None:
        if event.number == 1:
            await slow.wait()
        handled.append(event.number)

    app: Any = FakeApp()
    stream = FakeStream([FakeEvent(number, acked) for number in range(5)])
    running = asyncio.create_task(handle_each(app, stream, handle, in_flight=10))
    await turns()
    assert (handled, acked) == ([0, 2, 3, 4], [0])
    slow.set()
    await running
    assert acked == [0, 1, 2, 3, 4]
    assert app.reason is None


async def test_slow_event_holds_up_no_acknowledgement_of_another_partition() -> None:
    acked: list[int] = []

    async def handle(event: FakeEvent) -> None:
        if event.number == 0:
            await asyncio.Event().wait()

    app: Any = FakeApp()
    events = [FakeEvent(0, acked), FakeEvent(1, acked, 1), FakeEvent(2, acked)]
    running = asyncio.create_task(handle_each(app, FakeStream(events), handle, in_flight=10))
    await turns()
    assert acked == [1]
    running.cancel()


async def test_no_more_events_are_taken_than_may_be_unacknowledged() -> None:
    acked: list[int] = []
    go_on = asyncio.Event()

    async def handle(_: FakeEvent) -> None:
        await go_on.wait()

    app: Any = FakeApp()
    stream = FakeStream([FakeEvent(number, acked) for number in range(9)])
    running = asyncio.create_task(handle_each(app, stream, handle, in_flight=3))
    await turns()
    assert stream.taken == 4  # three in hand, one waiting for room
    go_on.set()
    await running
    assert len(acked) == 9


async def test_no_more_bytes_are_in_hand_than_may_be_and_a_larger_record_goes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.in_order.IN_FLIGHT_BYTES_MAX", 10)
    acked: list[int] = []
    in_hand: list[int] = []
    most = 0

    async def handle(event: FakeEvent) -> None:
        nonlocal most
        in_hand.append(len(event.value))
        most = max(most, sum(in_hand[len(acked) :]))
        await turns(3)

    app: Any = FakeApp()
    sizes = [4, 4, 4, 30, 2, 9]
    events = [FakeEvent(number, acked, size=size) for number, size in enumerate(sizes)]
    await handle_each(app, FakeStream(events), handle, in_flight=10)
    assert acked == list(range(len(sizes)))
    assert most == 30


async def test_event_that_raises_ends_the_process_and_it_and_what_follows_stay_unacknowledged() -> (
    None
):
    acked: list[int] = []

    async def handle(event: FakeEvent) -> None:
        if event.number == 2:
            raise ConnectionError("no broker")

    app: Any = FakeApp()
    stream = FakeStream([FakeEvent(number, acked) for number in range(6)])
    await handle_each(app, stream, handle, in_flight=3)
    assert isinstance(app.reason, ConnectionError)
    assert acked == [0, 1]


@settings(deadline=None, max_examples=60)
@given(
    partitions=st.lists(st.integers(0, 2), min_size=1, max_size=25),
    order=st.randoms(use_true_random=False),
    in_flight=st.integers(1, 8),
)
async def test_acknowledgements_of_a_partition_are_in_order_whatever_finishes_first(
    partitions: list[int], order: Any, in_flight: int
) -> None:
    acked: list[int] = []
    gates = {number: asyncio.Event() for number in range(len(partitions))}

    async def handle(event: FakeEvent) -> None:
        await gates[event.number].wait()

    app: Any = FakeApp()
    events = [FakeEvent(number, acked, at) for number, at in enumerate(partitions)]
    running = asyncio.create_task(handle_each(app, FakeStream(events), handle, in_flight=in_flight))
    opening = list(gates.values())
    order.shuffle(opening)
    for gate in opening:
        gate.set()
        await turns(3)
    await running
    by_partition = defaultdict(list)
    for number in acked:
        by_partition[partitions[number]].append(number)
    assert sorted(acked) == list(range(len(partitions)))
    assert all(numbers == sorted(numbers) for numbers in by_partition.values())


def batcher(
    batches: list[list[int]], *, cost: Callable[[int], int] = lambda _: 1
) -> Batcher[int, int]:
    """Doubles numbers, and remembers what was run together."""

    def run(items: list[int]) -> list[int]:
        batches.append(items)
        if 13 in items:
            raise ValueError("13 is not doubled")
        return [2 * item for item in items]

    return Batcher(ThreadPoolExecutor(1), run, cost=cost, cost_max=4)


async def test_batcher_runs_together_what_is_there_and_gives_each_its_own_result() -> None:
    batches: list[list[int]] = []
    double = batcher(batches)
    assert await asyncio.gather(*(double.submit(n) for n in range(6))) == [0, 2, 4, 6, 8, 10]
    assert batches == [[0, 1, 2, 3], [4, 5]]
    assert await double.submit(7) == 14
    assert batches[2:] == [[7]]


async def test_batch_ends_where_it_would_cost_too_much_and_a_dear_item_runs_alone() -> None:
    batches: list[list[int]] = []
    double = batcher(batches, cost=lambda item: item)
    await asyncio.gather(*(double.submit(n) for n in (1, 2, 2, 9, 3, 1)))
    assert batches == [[1, 2], [2], [9], [3, 1]]


async def test_batch_that_fails_tells_everybody_in_it_and_spoils_no_other() -> None:
    double = batcher([])
    found = await asyncio.gather(
        *(double.submit(n) for n in (1, 13, 2, 3, 4)), return_exceptions=True
    )
    assert [type(each) for each in found] == [ValueError] * 4 + [int]
    with pytest.raises(ValueError, match="13"):
        await double.submit(13)

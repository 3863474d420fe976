"""Events handled side by side and acknowledged in order, and work that waits together run together.

A slow event (its media is fetched, or tried again) must not hold up the events behind it, and must not be passed by
their acknowledgements either: Faust commits up to the highest one it was given. Knows nothing of what the events mean.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

import faust

from infra.log import get_logger

IN_FLIGHT_BYTES_MAX = 256 << 20
"""Records in hand together, one larger record excepted."""

Item = TypeVar("Item")
Result = TypeVar("Result")


async def handle_each(
    app: faust.App,
    stream: Any,
    handle: Callable[[Any], Coroutine[Any, Any, None]],
    *,
    in_flight: int,
) -> None:
    """Handle each event of a stream in a task of its own, at most `in_flight` of them not yet acknowledged.

    Their records have `IN_FLIGHT_BYTES_MAX` together.

    Delivery: an event is acknowledged once it and all before it in its partition were handled, so none that was not
    handled is ever committed; a crash has up to `in_flight` of them handled again. This is the process's supervisor:
    whatever `handle` raises ends the process.
    """
    acknowledged = _InOrder(in_flight)
    try:
        async with asyncio.TaskGroup() as tasks:
            async for event in stream.noack().events():
                await acknowledged.room_for(event)
                acknowledged.add(event, tasks.create_task(handle(event)))
    except* Exception as errors:  # noqa: BLE001 - the supervisor
        get_logger().exception("worker_crashed")
        await app.crash(errors.exceptions[0])


class _InOrder:
    """Events whose tasks run, by partition, oldest first."""

    def __init__(self, in_flight: int) -> None:
        self._room = asyncio.Semaphore(in_flight)
        self._bytes = 0
        self._fewer = asyncio.Event()
        self._waiting: dict[tuple[str, int], deque[tuple[Any, asyncio.Task[None]]]] = defaultdict(
            deque
        )

    async def room_for(self, event: Any) -> None:
        await self._room.acquire()
        size = len(event.value or b"")
        while self._bytes and self._bytes + size > IN_FLIGHT_BYTES_MAX:
            self._fewer.clear()
            await self._fewer.wait()
        self._bytes += size

    def add(self, event: Any, task: asyncio.Task[None]) -> None:
        at = (event.message.topic, event.message.partition)
        self._waiting[at].append((event, task))
        task.add_done_callback(lambda _: self._acknowledge(at))

    def _acknowledge(self, at: tuple[str, int]) -> None:
        waiting = self._waiting[at]
        while waiting and _succeeded(waiting[0][1]):
            event, _ = waiting.popleft()
            event.ack()
            self._bytes -= len(event.value or b"")
            self._fewer.set()
            self._room.release()


def _succeeded(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


class Batcher(Generic[Item, Result]):
    """Runs what is waiting together, in an executor: alone when it is quiet, in full batches under load.

    While one batch runs the next one gathers, so its size follows the load by itself and nobody waits for a timer.
    """

    def __init__(
        self,
        executor: Executor,
        run: Callable[[list[Item]], list[Result]],
        *,
        cost: Callable[[Item], int],
        cost_max: int,
    ) -> None:
        """Batch items up to `cost_max` together; an item that costs more runs alone."""
        self._executor = executor
        self._run = run
        self._cost = cost
        self._cost_max = cost_max
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return the item's result; raises what the run of its batch raised."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._drain())
        return await result

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # what arrived in the same turn of the loop goes together
        while self._waiting:
            batch = self._take()
            try:
                results = await loop.run_in_executor(
                    self._executor, self._run, [item for item, _ in batch]
                )
            except Exception as error:  # noqa: BLE001 - whoever waits for a result gets it
                for _, waiting in batch:
                    if not waiting.done():
                        waiting.set_exception(error)
                continue
            for (_, waiting), result in zip(batch, results, strict=True):
                if not waiting.done():  # cancelled meanwhile
                    waiting.set_result(result)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch = [self._waiting.popleft()]
        left = self._cost_max - self._cost(batch[0][0])
        while self._waiting and (cost := self._cost(self._waiting[0][0])) <= left:
            batch.append(self._waiting.popleft())
            left -= cost
        return batch

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from faust.types import TP
from pydantic import SecretStr

from infra.errors import ConfigError
from infra.settings import KafkaSettings, Settings
from workers.faust_app import (
    create_faust_app,
    handle_batches,
    lag_records,
    micro_batches,
    require_broker,
)


class FakeEvent:
    """Remembers that it was acknowledged."""

    def __init__(self, number: int, acked: list[int]) -> None:
        self.number = number
        self._acked = acked

    def ack(self) -> None:
        self._acked.append(self.number)


class FakeStream:
    """Gives its events; after each of `pauses` it waits until it is let go on."""

    def __init__(self, events: list[Any], pauses: frozenset[int] = frozenset()) -> None:
        self._events = events
        self._pauses = pauses
        self.go_on = asyncio.Event()

    def noack(self) -> FakeStream:
        return self

    async def events(self) -> AsyncIterator[Any]:
        for index, event in enumerate(self._events):
            yield event
            if index in self._pauses:
                await self.go_on.wait()


class FakeApp:
    """Remembers why it was crashed."""

    reason: BaseException | None = None

    async def crash(self, reason: BaseException) -> None:
        self.reason = reason


async def collect(stream: FakeStream, *, size: int, wait_s: float) -> list[list[Any]]:
    return [batch async for batch in micro_batches(stream.events(), size=size, wait_s=wait_s)]


async def test_micro_batches_hold_no_more_than_their_size_and_lose_nothing() -> None:
    batches = await collect(FakeStream(list(range(7))), size=3, wait_s=60)
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


async def test_micro_batch_is_given_when_its_time_is_up_and_the_late_event_comes_next() -> None:
    stream = FakeStream(["early", "late"], pauses=frozenset([0]))
    batches = micro_batches(stream.events(), size=10, wait_s=0)
    assert await anext(batches) == ["early"]
    stream.go_on.set()
    assert await anext(batches) == ["late"]


async def test_micro_batches_of_nothing_are_none() -> None:
    assert await collect(FakeStream([]), size=3, wait_s=0) == []


async def test_batch_is_acknowledged_in_order_only_after_it_was_handled() -> None:
    acked: list[int] = []
    acked_when_handled = []

    async def handle(_: list[Any]) -> None:
        acked_when_handled.append(list(acked))

    app: Any = FakeApp()
    stream = FakeStream([FakeEvent(number, acked) for number in range(5)])
    await handle_batches(app, stream, handle, size=2, wait_s=60)
    assert acked_when_handled == [[], [0, 1], [0, 1, 2, 3]]
    assert acked == [0, 1, 2, 3, 4]
    assert app.reason is None


async def test_batch_that_raises_ends_the_process_and_acknowledges_nothing_more() -> None:
    acked: list[int] = []
    handled: list[int] = []

    async def handle(batch: list[Any]) -> None:
        handled.extend(event.number for event in batch)
        if 2 in handled:
            raise ConnectionError("no broker")

    app: Any = FakeApp()
    stream = FakeStream([FakeEvent(number, acked) for number in range(6)])
    await handle_batches(app, stream, handle, size=2, wait_s=60)
    assert isinstance(app.reason, ConnectionError)
    assert acked == [0, 1]
    assert handled == [0, 1, 2, 3]


def test_app_is_set_to_lose_nothing(tmp_path: Any) -> None:
    kafka = KafkaSettings(bootstrap_servers="one:1,two:2", topic_prefix="p.", partitions=3)
    conf = create_faust_app(Settings(var_dir=tmp_path, kafka=kafka), "group").conf
    assert conf.id == "p.group"
    assert [str(url) for url in conf.broker] == ["kafka://one:1", "kafka://two:2"]
    assert (conf.stream_wait_empty, conf.producer_acks) == (True, -1)
    assert (conf.topic_allow_declare, conf.topic_disable_leader) == (False, True)
    assert conf.web_enabled is False


def test_app_takes_its_credentials_from_the_settings(tmp_path: Any) -> None:
    kafka = KafkaSettings(
        bootstrap_servers="one:1",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="freshet",
        sasl_password=SecretStr("secret"),
    )
    credentials = create_faust_app(
        Settings(var_dir=tmp_path, kafka=kafka), "group"
    ).conf.broker_credentials
    assert credentials.protocol.value == "SASL_SSL"
    assert credentials.mechanism.value == "SCRAM-SHA-512"
    assert (credentials.username, credentials.password) == ("freshet", "secret")


def test_worker_without_a_broker_says_which_setting_is_missing() -> None:
    with pytest.raises(ConfigError, match="FRESHET_KAFKA__BOOTSTRAP_SERVERS"):
        require_broker(KafkaSettings())


def test_lag_is_of_assigned_partitions_whose_offsets_are_known() -> None:
    partitions = [TP("a", 0), TP("a", 1), TP("b", 0), TP("b", 1), TP("c", 0)]
    ends = dict(zip(partitions, (10, 5, 7, 7, 3), strict=True))
    committed = {TP("a", 0): 4, TP("a", 1): 5, TP("b", 0): 9, TP("c", 0): 0}
    assert lag_records(ends, committed, partitions[:4]) == {"a": 6, "b": 0}

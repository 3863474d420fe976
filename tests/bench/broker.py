"""The local broker: seconds until it answers, records per second, and milliseconds from produce to consume."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from infra.kafka.broker import start_broker
from infra.settings import KafkaSettings, load_settings
from streams.admin import create_topics
from streams.client import consumer, flush, producer
from streams.topics import SWAPS
from tests.bench.measure import Measure

RECORD = bytes(range(250))  # about one watch event, and hardly compressible
NUM_RECORDS = 300_000
NUM_ROUND_TRIPS = 300
TOPIC = SWAPS.name  # any topic of one partition


def measure() -> list[Measure]:
    """Start a broker on an empty directory, load it, kill it and start it again."""
    jars_dir = load_settings().kafka.jars_dir
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        start_broker(data_dir / "warm-up", jars_dir=jars_dir).stop()  # the jars are fetched by now
        started = time.monotonic()
        with start_broker(data_dir / "broker", jars_dir=jars_dir) as broker:
            start_s = time.monotonic() - started
            settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
            create_topics(settings)
            measures = [_seconds("start_s", start_s), *_rates(settings), *_round_trips(settings)]
            broker.kill()
        started = time.monotonic()
        with start_broker(data_dir / "broker", jars_dir=jars_dir):
            return [*measures, _seconds("restart_after_kill_s", time.monotonic() - started)]


def _rates(settings: KafkaSettings) -> list[Measure]:
    sender = producer(settings)
    started = time.monotonic()
    for _ in range(NUM_RECORDS):
        _produce(sender)
    flush(sender)
    produce_s = time.monotonic() - started
    receiver = _reader(settings, offset=0)
    received = 0
    started = time.monotonic()
    while received < NUM_RECORDS:
        received += len(receiver.consume(10_000, timeout=1))
    consume_s = time.monotonic() - started
    receiver.close()
    return [
        _rate("produced_records_per_s", NUM_RECORDS / produce_s),
        _rate("consumed_records_per_s", NUM_RECORDS / consume_s),
    ]


def _round_trips(settings: KafkaSettings) -> list[Measure]:
    sender, receiver = producer(settings), _reader(settings, offset=NUM_RECORDS)
    trips_ms = []
    for _ in range(NUM_ROUND_TRIPS):
        started = time.monotonic()
        _produce(sender)
        while receiver.poll(1) is None:
            pass
        trips_ms.append(1000 * (time.monotonic() - started))
    flush(sender)
    receiver.close()
    median, tail = np.percentile(trips_ms[NUM_ROUND_TRIPS // 10 :], [50, 99])  # the first connect
    return [
        Measure(measure=name, value=float(value), unit="ms", higher_is_better=False)
        for name, value in (
            ("produce_to_consume_p50_ms", median),
            ("produce_to_consume_p99_ms", tail),
        )
    ]


def _produce(sender: Producer) -> None:
    while True:
        try:
            sender.produce(TOPIC, RECORD)
        except BufferError:  # the queue is full
            sender.poll(0.1)
        else:
            sender.poll(0)
            return


def _reader(settings: KafkaSettings, *, offset: int) -> Consumer:
    reader = consumer(settings)
    reader.assign([TopicPartition(TOPIC, 0, offset)])
    return reader


def _seconds(name: str, value: float) -> Measure:
    return Measure(measure=name, value=value, unit="s", higher_is_better=False)


def _rate(name: str, value: float) -> Measure:
    return Measure(measure=name, value=value, unit="records/s", higher_is_better=True)

"""Topics kept in memory, for what reads whole topics and asks no more of Kafka."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Self

import pytest

from infra.settings import KafkaSettings
from streams.topics import Topic

Values = Sequence[bytes | None]


def keep(monkeypatch: pytest.MonkeyPatch, module: str, *kept: tuple[Topic, Values]) -> None:
    """Let a module read these values, each topic's in its one partition, in place of a cluster's."""

    class Reader:
        def __init__(self, _: KafkaSettings, topics: Collection[Topic]) -> None:
            self._kept = [(topic, values) for topic, values in kept if topic in topics]
            self.next_offsets = {(topic.name, 0): 0 for topic in topics}

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def end_offsets(self) -> dict[tuple[str, int], int]:
            return {(topic.name, 0): len(values) for topic, values in self._kept}

        def read_to_end(self) -> Iterator[tuple[Topic, Any]]:
            for topic, values in self._kept:
                for offset, value in enumerate(values):
                    yield topic, _message(value, offset)

    monkeypatch.setattr(f"{module}.TopicReader", Reader)


def _message(value: bytes | None, offset: int) -> Any:
    return SimpleNamespace(value=lambda: value, partition=lambda: 0, offset=lambda: offset)

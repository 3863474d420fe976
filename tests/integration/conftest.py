"""What integration tests share: one real broker for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.kafka.broker import LocalBroker, start_broker
from infra.settings import load_settings


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A running broker; tests that crash theirs start their own."""
    jars_dir = load_settings().kafka.jars_dir
    with start_broker(tmp_path_factory.mktemp("kafka"), jars_dir=jars_dir) as running:
        yield running

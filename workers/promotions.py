"""What is announced of a checkpoint: one CheckpointPromoted for the model, then one for each adapter saved with it.

All of it follows from the checkpoint's state.json, so it can be made up for after a crash. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra import metrics
from infra.clock import now_ms
from infra.log import get_logger
from models.surface_adapters import WEIGHTS_FILE
from streams.events import CheckpointPromoted
from workers.training_state import adapter_path, checkpoint_key

log = get_logger()


def adapter_name(model_name: str, name: str) -> str:
    """Return the model_name of an adapter: `lrm.home`."""
    return f"{model_name}.{name}"


def promotions(model_name: str, document: dict[str, Any]) -> Iterator[CheckpointPromoted]:
    """Yield the events of a checkpoint, that of the model first; none if a gate refused it."""
    record = document["record"]
    if record["refused"]:
        return
    yield CheckpointPromoted(
        model_name=model_name,
        model_version=document["model_version"],
        codebook_version=document["codebook_version"],
        path=checkpoint_key(model_name, document["model_version"]),
        sha256=document["sha256"],
        metrics=record["metrics"],
        shard_ids=tuple(record["shard_ids"]),
        newest_event_time_ms=document["newest_event_time_ms"],
        first_append_time_ms=record.get("first_append_time_ms", 0),  # older ones have none
        next_semantic_id_offsets=document["positions"]["next_semantic_id_offsets"],
        promoted_time_ms=now_ms(),
    )
    yield from adapter_promotions(model_name, document)


def adapter_promotions(model_name: str, document: dict[str, Any]) -> Iterator[CheckpointPromoted]:
    """Yield the events of the adapters that a checkpoint's state.json promotes; none if their base was refused."""
    record = document["record"]
    if record["refused"]:
        return
    for name, found in record.get("adapters", {}).items():  # older ones have none
        if found["refused"]:
            continue
        path = adapter_path(name)
        yield CheckpointPromoted(
            model_name=adapter_name(model_name, name),
            model_version=document["model_version"],
            codebook_version=document["codebook_version"],
            path=f"{checkpoint_key(model_name, document['model_version'])}/{path}",
            sha256=document["files"][f"{path}/{WEIGHTS_FILE}"],
            metrics=found["metrics"],
            newest_event_time_ms=document["newest_event_time_ms"],
            promoted_time_ms=now_ms(),
            base_model_version=document["model_version"],
            base_sha256=document["sha256"],
        )


def log_adapters(document: dict[str, Any]) -> None:
    """Log and count what a round made of each adapter, by its checkpoint's state.json."""
    for name, found in document["record"].get("adapters", {}).items():
        verdict = "refused" if found["refused"] else "promoted"
        metrics.ADAPTERS.labels(name, verdict).inc()
        measured = {key: round(value, 4) for key, value in found["metrics"].items()}
        log.info(f"adapter_{verdict}", adapter=name, reason=found["refused"], **measured)

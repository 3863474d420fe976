"""Structured logging for every process: structlog rendered through the standard library's handlers.

An event is a constant in the past tense (`shard_sealed`), its values are fields. Library lines (Faust, Ray, uvicorn)
come out in the same format. User ids go through `hashed` first.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor


def configure(process: str, *, level: str = "INFO", format: str = "auto") -> None:
    """Send all logging of this process to stderr, each line carrying the process's name."""
    shared: list[Processor] = [
        partial(_name_process, process),
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    on_terminal = sys.stderr.isatty() if format == "auto" else format == "console"
    renderer: Processor = (
        structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer()
    )
    tail: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not on_terminal:
        tail.append(structlog.processors.format_exc_info)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[*tail, renderer]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=True,
    )


def _name_process(process: str, logger: object, method: str, event: EventDict) -> EventDict:
    event["process"] = process  # a context variable would be unknown to threads
    return event


def get_logger() -> FilteringBoundLogger:
    """Return the logger that every module uses."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def hashed(user_id: str) -> str:
    """Return the form in which a user id may appear in a log."""
    return hashlib.blake2b(user_id.encode(), digest_size=6).hexdigest()


def begin_anew(path: Path, *, longer_than_bytes: int) -> None:
    """Empty a log that is too long, after copying it to the same name with `.1` behind it.

    Its writers have it open to append, so they go on at its new end. What one writes in between is lost.
    """
    with suppress(FileNotFoundError):
        if path.stat().st_size > longer_than_bytes:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)

"""What answers under one name, and how another takes its place: loaded beside it, checked, tried, then swapped in.

                    promoted
                       |
        same as now ---+--- same as before it: swapped back at once
        (nothing)      |
                    load (codebook, hash, finite weights) -> try (as requests make it work)
                       |                                       |
                    rejected: the old one serves on         one reference changes: succeeded

Files that cannot be had now say nothing of a checkpoint: its pointer is kept, and tried again with the next ones.
A request takes `current` once and keeps it to its end. Knows nothing of kinds of models, of topics, Ray and HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from infra import metrics
from infra.clock import now_ms
from infra.errors import TransientError, VersionMismatchError
from infra.log import get_logger
from infra.storage import ObjectStore
from streams.events import LRM_MODEL_NAME, CheckpointPromoted, SwapReported

log = get_logger()


class Bundle(Protocol):
    """Everything that one answer needs of a model; immutable."""

    @property
    def model_version(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102


B = TypeVar("B", bound=Bundle)


class CheckpointFiles:
    """Hands out the files of checkpoints, those of the live codebook only."""

    def __init__(self, store: ObjectStore, cache: Path, *, codebook_version: int) -> None:
        """Read from `store`; `cache` is a folder for copies out of a remote one."""
        self._store, self._cache, self.codebook_version = store, cache, codebook_version

    def folder_of(self, promoted: CheckpointPromoted) -> Path:
        """Return a local folder with the checkpoint's files; load them soon.

        Raises:
            VersionMismatchError: it is announced for another codebook.
            ValueError: its path leaves the store.
            TransientError: the store cannot be read now.
        """
        if promoted.codebook_version != self.codebook_version:
            raise VersionMismatchError(
                f"checkpoint {promoted.path} is announced for codebook {promoted.codebook_version}, live is "
                f"{self.codebook_version}"
            )
        try:
            return self._store.local_directory(promoted.path, self._cache)
        except ValueError:
            raise
        except Exception as error:  # each kind of object store has its own for not answering
            raise TransientError(f"checkpoint {promoted.path} is out of reach: {error}") from error


class SwapLog:
    """Counts a replica's swaps, logs them, and puts them into words for `serving.swaps`."""

    def __init__(self, *, replica: str) -> None:
        self._replica = replica
        self.swaps = 0
        self.rejected_swaps = 0

    def report(
        self, promoted: CheckpointPromoted, *, previous_version: int, reason: str, load_s: float
    ) -> SwapReported:
        """Return the report of a swap; of a rejected checkpoint there is a reason."""
        report = SwapReported(
            replica=self._replica,
            model_name=promoted.model_name,
            model_version=promoted.model_version,
            previous_version=previous_version,
            outcome="rejected" if reason else "succeeded",
            reason=reason,
            sha256=promoted.sha256,
            swapped_time_ms=now_ms(),
            load_s=load_s,
        )
        which = {"model": promoted.model_name, "model_version": promoted.model_version}
        metrics.SWAPS.labels(model=promoted.model_name, outcome=report.outcome).inc()
        if reason:
            self.rejected_swaps += 1
            log.error("checkpoint_rejected", **which, reason=reason)
            return report
        self.swaps += 1
        _expose(promoted)
        if promoted.model_name == LRM_MODEL_NAME:  # the model that the stages lead to
            _observe_stage(promoted, report)
        log.info("model_swapped", **which, load_s=round(load_s, 3))
        return report


def _expose(promoted: CheckpointPromoted) -> None:
    name = promoted.model_name
    metrics.SERVED_VERSION.labels(name).set(promoted.model_version)
    metrics.SERVED_PROMOTED.labels(name).set(promoted.promoted_time_ms / 1000)
    if promoted.newest_event_time_ms:
        trained_until_s = promoted.newest_event_time_ms / 1000
        metrics.SERVED_TRAINED_UNTIL.labels(name).set(trained_until_s)
        metrics.MODEL_AGE.labels(name).set_function(lambda: time.time() - trained_until_s)


def _observe_stage(promoted: CheckpointPromoted, report: SwapReported) -> None:
    if report.previous_version:  # the first model of a replica may have been promoted long ago
        delay_s = (report.swapped_time_ms - promoted.promoted_time_ms) / 1000
        metrics.STAGE_DELAYS["checkpoint_to_serving"].observe(delay_s)
    if promoted.first_append_time_ms and promoted.model_version > report.previous_version > 0:
        delay_s = (report.swapped_time_ms - promoted.first_append_time_ms) / 1000
        metrics.STAGE_DELAYS["watch_to_serving"].observe(delay_s)
    metrics.LAST_SUCCESS.labels(stage="checkpoint_to_serving").set_to_current_time()


class _Served(NamedTuple, Generic[B]):
    current: B | None
    previous: B | None


class Slot(Generic[B]):
    """Holds the model that answers and the one before it; one thread writes, many read `current`."""

    def __init__(self, load: Callable[[CheckpointPromoted], B], swap_log: SwapLog) -> None:
        """Start without a model; `load` loads, checks and tries a checkpoint, or raises."""
        self._load, self._log = load, swap_log
        self._served: _Served[B] = _Served(None, None)
        self._postponed: list[CheckpointPromoted] = []

    @property
    def current(self) -> B | None:
        """The model that answers; take it once per request."""
        return self._served.current

    @property
    def previous(self) -> B | None:
        """The model before it, kept for a rollback at once."""
        return self._served.previous

    def holds(self, promoted: CheckpointPromoted) -> bool:
        """Return whether a checkpoint is the current one or the one before it, so that no file is needed."""
        return any(one is not None and is_of(one, promoted) for one in self._served)

    def follow(self, pointers: Sequence[CheckpointPromoted]) -> list[SwapReported]:
        """Serve the last of some pointers that is good; those that it overtakes are not loaded.

        One whose files cannot be had now is kept, and tried again at the next call, also without new pointers.

        Delivery: a replica that dies here reads the same pointers again.
        """
        reports = []
        pointers, self._postponed = [*self._postponed, *pointers], []
        for promoted in reversed(pointers):
            try:
                report = self.swap(promoted)
            except (TransientError, OSError) as error:
                log_postponed(promoted, error)
                self._postponed.insert(0, promoted)
                continue
            if report is None:
                break
            reports.append(report)
            if report.outcome == "succeeded":
                break
        return reports

    def swap(self, promoted: CheckpointPromoted) -> SwapReported | None:
        """Serve a checkpoint, or keep what serves and say why; None when it is the one that serves already.

        Raises:
            TransientError: its files cannot be had now.
            OSError: they are there and cannot be read now.
        """
        current, previous = self._served
        if current is not None and is_of(current, promoted):
            return None
        started, reason = time.monotonic(), ""
        try:
            rolled_back = previous is not None and is_of(previous, promoted)
            bundle = previous if previous and rolled_back else self._load(promoted)
            self._served = _Served(bundle, current)
        except Exception as error:
            if may_pass(error):
                raise
            # Whatever else a checkpoint does to its loader, the old model serves on.
            reason = f"{type(error).__name__}: {error}"
        return self._log.report(
            promoted,
            previous_version=current.model_version if current else 0,
            reason=reason,
            load_s=time.monotonic() - started,
        )

    def replace(self, old: B, new: B) -> None:
        """Put a bundle in the place of one of the same checkpoint: that of the current one or of the one before.

        One reference changes: a request has the whole old bundle or the whole new one.
        """
        current, previous = self._served
        self._served = _Served(
            new if current is old else current, new if previous is old else previous
        )


def is_of(bundle: Bundle, promoted: CheckpointPromoted) -> bool:
    """Return whether a bundle is what a pointer names."""
    return (bundle.model_version, bundle.sha256) == (promoted.model_version, promoted.sha256)


def may_pass(error: Exception) -> bool:
    """Return whether an error says nothing of the checkpoint itself.

    The system's own errors have a number; those without one come from libraries, for a file that is none.
    """
    failed_read = isinstance(error, OSError) and error.errno is not None
    return failed_read or isinstance(error, TransientError)


def log_postponed(promoted: CheckpointPromoted, error: Exception) -> None:
    """Log that a checkpoint's files cannot be had now."""
    log.warning(
        "checkpoint_postponed",
        model=promoted.model_name,
        model_version=promoted.model_version,
        error=str(error),
    )

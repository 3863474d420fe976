"""The model that answers, and how another takes its place: loaded beside it, checked, tried, then swapped in.

                    promoted
                       |
        same as now ---+--- same as before it: swapped back at once
        (nothing)      |
                    load (codebook, hash, finite weights) -> try (a search, as requests make them)
                       |                                       |
                    rejected: the old one serves on         one reference changes: succeeded

Files that cannot be had now say nothing of a checkpoint: its pointer is kept, and tried again with the next ones.
A request takes `current` once and keeps it to its end. Knows nothing of topics, Ray and HTTP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from infra import metrics
from infra.clock import now_ms
from infra.errors import TransientError, VersionMismatchError
from infra.log import get_logger
from infra.storage import ObjectStore
from models.lrm import Lrm, load_lrm
from models.prompts import Ask
from models.recommend import Request, recommend
from models.trie import LiveTrie, TrieView
from serve.views import CatalogueView
from streams.events import CheckpointPromoted, SwapReported
from streams.history import Entry

PROBE_K = 10

log = get_logger()


@dataclass(frozen=True)
class ModelBundle:
    """Everything that one answer needs of a model; immutable."""

    lrm: Lrm
    model_version: int
    sha256: str


class _Served(NamedTuple):
    current: ModelBundle | None
    previous: ModelBundle | None


class ModelSlot:
    """Holds the model that answers and the one before it; one thread writes, many read `current`."""

    def __init__(
        self,
        store: ObjectStore,
        catalogue: CatalogueView,
        *,
        replica: str,
        cache: Path,
        beam_width: int,
    ) -> None:
        """Start without a model.

        Args:
            store: holds the checkpoints.
            catalogue: whose codebook_version every model must speak, and whose videos a new model is tried on.
            replica: who reports the swaps.
            cache: folder for copies out of a remote store.
            beam_width: as requests search with.
        """
        self._store, self._catalogue, self._cache = store, catalogue, cache
        self._replica, self._beam_width = replica, beam_width
        self._served = _Served(None, None)
        self._postponed: list[CheckpointPromoted] = []
        self.swaps = 0
        self.rejected_swaps = 0

    @property
    def current(self) -> ModelBundle | None:
        """The model that answers; take it once per request."""
        return self._served.current

    @property
    def previous(self) -> ModelBundle | None:
        """The model before it, kept for a rollback at once."""
        return self._served.previous

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
                log.warning(
                    "checkpoint_postponed", model_version=promoted.model_version, error=str(error)
                )
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
        if current is not None and _is(current, promoted):
            return None
        started = time.monotonic()
        reason = ""
        try:
            rolled_back = previous is not None and _is(previous, promoted)
            bundle = previous if previous and rolled_back else self._loaded(promoted)
            self._served = _Served(bundle, current)
        except Exception as error:
            if _may_pass(error):
                raise
            # Whatever else a checkpoint does to its loader, the old model serves on.
            reason = f"{type(error).__name__}: {error}"
        return self._report(promoted, current, reason, load_s=time.monotonic() - started)

    def _loaded(self, promoted: CheckpointPromoted) -> ModelBundle:
        space = self._catalogue.trie.view.space
        if promoted.codebook_version != space.codebook_version:
            raise VersionMismatchError(
                f"checkpoint {promoted.path} is announced for codebook {promoted.codebook_version}, live is "
                f"{space.codebook_version}"
            )
        directory = self._fetched(promoted)
        lrm = load_lrm(directory, sha256=promoted.sha256, codebook_version=space.codebook_version)
        if lrm.space != space:
            raise VersionMismatchError(
                f"checkpoint {promoted.path} speaks {lrm.space}, live is {space}"
            )
        self._try(lrm)
        return ModelBundle(lrm, promoted.model_version, promoted.sha256)

    def _fetched(self, promoted: CheckpointPromoted) -> Path:
        """Return a local folder with the checkpoint's files.

        Raises:
            ValueError: its path leaves the store.
            TransientError: the store cannot be read now.
        """
        try:
            return self._store.local_directory(promoted.path, self._cache)
        except ValueError:
            raise
        except Exception as error:  # each kind of object store has its own for not answering
            raise TransientError(f"checkpoint {promoted.path} is out of reach: {error}") from error

    def _try(self, lrm: Lrm) -> None:
        """Search as requests do, with the shortest prompt and the longest; this is the warm-up, too.

        Raises:
            VersionMismatchError: an answer is not live, not finite, or too short.
        """
        view, catalogue = self._catalogue.trie.view, self._catalogue.catalogue
        if len(view) == 0:
            view = _one_video(view)
        some_ids = view.some_video_ids(lrm.history_max)
        watches = [Entry(video_id, 100, 60, 0, "home") for video_id in some_ids]
        wanted = min(PROBE_K, self._beam_width, len(view))
        answers = recommend(
            lrm,
            [
                Request(viewer=None, watches=(), ask=Ask("home")),
                Request(viewer=None, watches=watches, ask=Ask("watch_next", some_ids[0])),
            ],
            view,
            catalogue.videos,
            top_k=wanted,
            beam_width=self._beam_width,
        )
        for found in answers:
            good = [
                one for one in found if view.allows(one.video_id) and math.isfinite(one.log_prob)
            ]
            if len(good) != wanted:
                raise VersionMismatchError(
                    f"a trial search found {len(good)} live videos with a finite log_prob, expected {wanted}"
                )

    def _report(
        self,
        promoted: CheckpointPromoted,
        before: ModelBundle | None,
        reason: str,
        *,
        load_s: float,
    ) -> SwapReported:
        report = SwapReported(
            replica=self._replica,
            model_name=promoted.model_name,
            model_version=promoted.model_version,
            previous_version=before.model_version if before else 0,
            outcome="rejected" if reason else "succeeded",
            reason=reason,
            sha256=promoted.sha256,
            swapped_time_ms=now_ms(),
            load_s=load_s,
        )
        metrics.SWAPS.labels(outcome=report.outcome).inc()
        if reason:
            self.rejected_swaps += 1
            log.error("checkpoint_rejected", model_version=promoted.model_version, reason=reason)
            return report
        self.swaps += 1
        if before is not None:  # the first model of a replica may have been promoted long ago
            delay_s = (report.swapped_time_ms - promoted.promoted_time_ms) / 1000
            metrics.STAGE_DELAY.labels(stage="checkpoint_to_serving").observe(delay_s)
        metrics.LAST_SUCCESS.labels(stage="checkpoint_to_serving").set_to_current_time()
        log.info("model_swapped", model_version=promoted.model_version, load_s=round(load_s, 3))
        return report


def _is(bundle: ModelBundle, promoted: CheckpointPromoted) -> bool:
    return (bundle.model_version, bundle.sha256) == (promoted.model_version, promoted.sha256)


def _may_pass(error: Exception) -> bool:
    """Return whether an error says nothing of the checkpoint itself.

    The system's own errors have a number; those without one come from libraries, for a file that is none.
    """
    failed_read = isinstance(error, OSError) and error.errno is not None
    return failed_read or isinstance(error, TransientError)


def _one_video(empty: TrieView) -> TrieView:
    """Return a view of the same space with one video, to try a model before any video is live."""
    trie = LiveTrie(empty.space)
    trie.insert((0,) * empty.space.num_levels, "none", 0)
    return trie.view

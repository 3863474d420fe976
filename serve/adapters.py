"""Which adapters belong to which base, and how they join it; knows nothing of requests, topics and Ray.

An adapter is announced by a pointer of its own, which names its base by the hash of its weights. It is kept until that
base serves, and joins then, or with it where both are there; a base that serves without it answers alone meanwhile. A
base that was left behind keeps its adapters for a rollback, in the bundle that is kept, or else by their pointers.
"""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import replace
from types import MappingProxyType

from infra.log import get_logger
from models.lrm import Lrm
from models.surface_adapters import load_adapter
from serve.model_bundles import RANKING, ModelBundle
from serve.model_slot import CheckpointFiles, SwapLog, log_postponed, may_pass
from serve.model_trial import Trial
from streams.events import LRM_MODEL_NAME, SURFACES, CheckpointPromoted, SwapReported

BASES_KEPT = 64
"""Bases whose adapters' pointers are kept: a rollback further back than that serves the base alone."""
_NAMES = {f"{LRM_MODEL_NAME}.{name}": name for name in (*SURFACES, RANKING)}

log = get_logger()


def is_adapter(model_name: str) -> bool:
    """Return whether checkpoints of this name are adapters that serving knows of."""
    return model_name in _NAMES


class Adapters:
    """Keeps the adapters' pointers by base, and loads those of a base at hand; one thread uses it."""

    def __init__(self, files: CheckpointFiles, trial: Trial, swap_log: SwapLog) -> None:
        self._files, self._trial, self._log = files, trial, swap_log
        self._by_base: dict[str, dict[str, CheckpointPromoted]] = {}
        self._reports: list[SwapReported] = []

    def take(self, promoted: CheckpointPromoted) -> None:
        """Keep a pointer; the last one for a name and base counts, and one that names no base is rejected."""
        name = _NAMES[promoted.model_name]
        if promoted.base_sha256 is None:
            self._report(promoted, None, "it names no base: announce it with base_sha256", 0.0)
            return
        of_base = self._by_base.pop(promoted.base_sha256, {})
        self._by_base[promoted.base_sha256] = of_base | {name: promoted}
        if len(self._by_base) > BASES_KEPT:
            del self._by_base[next(iter(self._by_base))]

    def known(self, base_sha256: str) -> Set[str]:
        """Return the names of the adapters that were announced for a base."""
        return self._by_base.get(base_sha256, {}).keys()

    def joined(self, bundle: ModelBundle, before: ModelBundle | None) -> ModelBundle:
        """Return the bundle with all adapters that its base has and that are good; itself where it has them.

        One that is not good is rejected once, and one whose files cannot be had now is tried again at the next call.

        Args:
            bundle: stays as it is.
            before: what served until now, for the reports.
        """
        adapters, pointers = dict(bundle.adapters), dict(bundle.adapter_pointers)
        for name, promoted in list(self._by_base.get(bundle.sha256, {}).items()):
            if _is_same(promoted, pointers.get(name)):
                continue
            started, reason = time.monotonic(), ""
            try:
                adapters[name] = self._loaded(bundle.lrm, name, promoted)
                pointers[name] = promoted
            except Exception as error:  # noqa: BLE001 - whatever an adapter does to its loader, its base serves on
                if may_pass(error):
                    log_postponed(promoted, error)
                    continue
                del self._by_base[bundle.sha256][name]
                reason = f"{type(error).__name__}: {error}"
            self._report(promoted, before, reason, time.monotonic() - started)
        if pointers == dict(bundle.adapter_pointers):
            return bundle
        return replace(
            bundle,
            adapters=MappingProxyType(adapters),
            adapter_pointers=MappingProxyType(pointers),
        )

    def _loaded(self, base: Lrm, name: str, promoted: CheckpointPromoted) -> Lrm:
        assert promoted.base_sha256 is not None
        lrm = load_adapter(
            base,
            self._files.folder_of(promoted),
            base_sha256=promoted.base_sha256,
            sha256=promoted.sha256,
        )
        if name == RANKING:
            self._trial.rate(lrm)
        else:
            self._trial.search(lrm, [name])
        return lrm

    def _report(
        self, promoted: CheckpointPromoted, before: ModelBundle | None, reason: str, load_s: float
    ) -> None:
        name = _NAMES[promoted.model_name]
        served = before.adapter_pointers.get(name) if before else None
        report = self._log.report(
            promoted,
            previous_version=served.model_version if served else 0,
            reason=reason,
            load_s=load_s,
        )
        self._reports.append(report)

    def reports(self) -> list[SwapReported]:
        """Return what there is to report since the last call."""
        reports, self._reports = self._reports, []
        return reports


def _is_same(promoted: CheckpointPromoted, joined: CheckpointPromoted | None) -> bool:
    if joined is None:
        return False
    return (promoted.model_version, promoted.sha256) == (joined.model_version, joined.sha256)

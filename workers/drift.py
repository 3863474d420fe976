"""The drift of the codebook as metrics; knows nothing of how it is computed (`models.codebook_drift`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infra import metrics
from models.codebook import CodebookManifest
from models.codebook_drift import DriftWindow


class CodebookDrift:
    """The drift of the newest videos from those that the codebook was fitted on; not thread-safe.

    A card without a figure leaves the metrics that need it unset.
    """

    def __init__(self, manifest: CodebookManifest) -> None:
        self._window = DriftWindow(manifest)

    def observe(self, codes: NDArray[np.integer], residual_norms: NDArray[np.floating]) -> None:
        """Take in the codes [videos, levels] and residual norms [videos] just computed."""
        figures = self._window.observe(codes, residual_norms)
        if figures is None:
            return
        metrics.CODEBOOK_WINDOW.set(figures.videos)
        metrics.CODEBOOK_COLLISIONS.set(figures.collision_ratio)
        for quantile, ratio in figures.residual_norm_ratios.items():
            metrics.CODEBOOK_RESIDUAL_NORM.labels(quantile=str(quantile)).set(ratio)
        for level, bits in enumerate(figures.usage_divergences):
            metrics.CODEBOOK_DIVERGENCE.labels(level=str(level)).set(bits)

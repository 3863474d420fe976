from __future__ import annotations

import numpy as np
from prometheus_client import REGISTRY

from models.codebook import CodebookManifest
from workers.drift import CodebookDrift


def test_drift_of_the_newest_videos_is_in_the_metrics() -> None:
    card = {"residual_norm": {"p50": 0.5, "p99": 0.5}, "code_counts": [[1, 0], [1, 1]]}
    manifest = CodebookManifest(
        codebook_version=1, codebook_sizes=(2, 2), disambiguation_size=64, embedding_dim=8,
        encoders_sha256="", quantizer={}, card={"fitted": card}, files={},
    )  # fmt: skip
    drift = CodebookDrift(manifest)
    drift.observe(np.array([(1, 0), (1, 1)] * 100), np.full(200, 1.0, dtype=np.float32))

    def value(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"freshet_codebook_{name}", labels)

    assert value("window_videos") == 200
    assert value("collision_ratio") == 1
    assert value("residual_norm_ratio", quantile="0.5") == 2
    assert value("residual_norm_ratio", quantile="0.99") == 2
    assert value("usage_divergence", level="0") == 1
    assert value("usage_divergence", level="1") == 0

"""Runs a codebook's quantizer in a worker, without torch; knows nothing of where codes go.

Legend: B videos, L levels, D dimension of the fused embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import DecodeError, VersionMismatchError
from models.codebook import CodebookManifest
from models.encoders import MODALITIES, Embeddings
from models.onnx_session import open_session


@dataclass(frozen=True)
class QuantizedBatch:
    """Codes, fused embeddings and clusters of some videos.

    Shapes: codes_BL int64, embedding_BD float16, residual_norm_B float32, cluster_id_B int64.
    """

    codes_BL: NDArray[np.int64]
    embedding_BD: NDArray[np.float16]
    residual_norm_B: NDArray[np.float32]
    cluster_id_B: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes_BL)

    def split(self) -> list[QuantizedBatch]:
        """Return batches of one video each."""
        return [
            QuantizedBatch(
                self.codes_BL[row : row + 1],
                self.embedding_BD[row : row + 1],
                self.residual_norm_B[row : row + 1],
                self.cluster_id_B[row : row + 1],
            )
            for row in range(len(self))
        ]


class OnnxQuantizer:
    """A codebook's ONNX graph, ready to run; thread-safe.

    Raises:
        VersionMismatchError: the graph was exported for another codebook_version or other sizes.
    """

    def __init__(
        self, manifest: CodebookManifest, graph: Path | bytes, *, num_threads: int | None = None
    ) -> None:
        self.manifest = manifest
        self._session = open_session(graph, num_threads=num_threads)
        said = self._session.get_modelmeta().custom_metadata_map
        expected = {
            "codebook_version": str(manifest.codebook_version),
            "codebook_sizes": ",".join(map(str, manifest.codebook_sizes)),
        }
        found = {name: said.get(name) for name in expected}
        if found != expected:
            raise VersionMismatchError(
                f"the quantizer's graph says {found}, its manifest says {expected}: not used; "
                "run `freshet bootstrap` to publish a new codebook"
            )

    def quantize(self, embeddings: Embeddings) -> QuantizedBatch:
        """Return the videos' codes, fused embeddings and clusters.

        Shapes: B rows -> B rows; B may be 0.

        Raises:
            DecodeError: with reason `nan_embedding`, an embedding is not finite, or `no_content`, a video has no
                modality at all.
        """
        rows = {name: getattr(embeddings, f"{name}_BD") for name in MODALITIES}
        if not all(np.isfinite(values).all() for values in rows.values()):
            raise DecodeError("an encoder returned numbers that are not finite", "nan_embedding")
        if not embeddings.present_BM.any(axis=1).all():
            raise DecodeError("the video has no text, frames or sound to code", "no_content")
        codes_BL, embedding_BD, residual_norm_B, cluster_id_B = self._session.run(
            ["codes", "embedding", "residual_norm", "cluster_id"],
            rows | {"present": embeddings.present_BM},
        )
        # Finite rows can still be too large to fuse: their squares are not.
        if not (np.isfinite(embedding_BD).all() and np.isfinite(residual_norm_B).all()):
            raise DecodeError("the fused embedding is not finite", "nan_embedding")
        return QuantizedBatch(
            codes_BL, embedding_BD.astype(np.float16), residual_norm_B, cluster_id_B
        )

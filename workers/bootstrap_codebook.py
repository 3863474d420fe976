"""Fits the first codebook, or the next, to a catalogue and publishes it; knows nothing of Kafka.

The uploads worker starts only where a codebook was published, so this runs once before it, in its own process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import save

from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import (
    ENCODERS_KEY,
    GRAPH_FILE,
    WEIGHTS_FILE,
    CodebookManifest,
    next_version,
    publish_codebook,
)
from models.codebook_card import codebook_card
from models.encoder_export import export_encoders
from models.encoders import MANIFEST_FILE, Embeddings, Encoders
from models.onnx_quantizer import OnnxQuantizer, QuantizedBatch
from models.quantizer import QuantizerConfig
from models.quantizer_export import export_quantizer
from models.quantizer_fit import Progress, fit_quantizer
from streams.events import CodesComputed, VideoUploaded
from workers.featurize import codes_computed, content_of

DISAMBIGUATION_SIZE = 64
ENCODE_BATCH = 256


@dataclass(frozen=True)
class FittedCodebook:
    """A published codebook, and what it makes of the catalogue it was fitted to, in the catalogue's order."""

    manifest: CodebookManifest
    embeddings: Embeddings
    quantized: QuantizedBatch

    def codes_computed(
        self, uploads: Sequence[VideoUploaded], *, append_time_ms: int
    ) -> Iterator[CodesComputed]:
        """Yield the events from which the uploads worker assigns semantic IDs, without encoding anything again.

        Their position is before that of any upload in Kafka, so that every later edit is newer.
        """
        for upload, row in zip(uploads, self.quantized.split(), strict=True):
            yield codes_computed(
                upload, row, self.manifest, append_time_ms=append_time_ms, position=-1
            )


def fit_codebook(
    uploads: Sequence[VideoUploaded],
    settings: Settings,
    *,
    config: QuantizerConfig | None = None,
    progress: Progress | None = None,
) -> FittedCodebook:
    """Encode a catalogue, fit a quantizer to it and publish both, the new codebook as the current one.

    Args:
        uploads: the catalogue, or its earlier part.
        settings: names the object store, media roots and seed.
        config: of the quantizer.
        progress: told the stage ("encoders", "encode", "fusion", "codebooks", "publish") and the share done of it.

    Raises:
        ValueError: there are fewer uploads than the largest codebook has codes.
        ConfigError: the encoders' weights are not installed.
        DecodeError: an upload's media is bad.
        TransientError: an upload's media is missing.
    """
    config = config or QuantizerConfig()
    report = progress or (lambda _stage, _share: None)
    store = ObjectStore(settings.storage.root)
    report("encoders", 0.0)
    encoders = Encoders(_publish_encoders(store, settings.var_dir / "cache"))
    embeddings = _encode(encoders, uploads, settings, report)
    quantizer = fit_quantizer(embeddings, config=config, seed=settings.seed, progress=report)
    report("publish", 0.0)
    version = next_version(store)
    graph = export_quantizer(quantizer, codebook_version=version)
    manifest = CodebookManifest(
        codebook_version=version,
        codebook_sizes=config.codebook_sizes,
        disambiguation_size=DISAMBIGUATION_SIZE,
        embedding_dim=config.embedding_dim,
        encoders_sha256=encoders.manifest.digest,
        quantizer=config.to_json(),
        card={},
        files={},
    )
    quantized = OnnxQuantizer(manifest, graph).quantize(embeddings)  # as the workers will
    card = codebook_card(quantized.codes_BL, quantized.residual_norm_B, config.codebook_sizes)
    files = {GRAPH_FILE: graph, WEIGHTS_FILE: save(dict(quantizer.state_dict()))}
    manifest = publish_codebook(store, replace(manifest, card=card), files)
    report("publish", 1.0)
    return FittedCodebook(manifest, embeddings, quantized)


def _publish_encoders(store: ObjectStore, cache: Path) -> Path:
    """Return a local folder with the store's encoders, building them where they are missing or out of date."""
    if store.is_local:
        directory = store.local_directory(ENCODERS_KEY, cache)
        export_encoders(directory)
        return directory
    directory = cache / "export" / ENCODERS_KEY
    manifest = export_encoders(directory)
    key = f"{ENCODERS_KEY}/{MANIFEST_FILE}"
    if not store.exists(key) or store.get_bytes(key) != manifest.to_json().encode():
        for path in sorted(directory.iterdir()):
            if path.name != MANIFEST_FILE:
                store.put_bytes(f"{ENCODERS_KEY}/{path.name}", path.read_bytes())
        store.put_bytes(key, manifest.to_json().encode())  # last: it names all the others
    return directory


def _encode(
    encoders: Encoders, uploads: Sequence[VideoUploaded], settings: Settings, report: Progress
) -> Embeddings:
    parts = []
    for start in range(0, len(uploads), ENCODE_BATCH):
        report("encode", start / len(uploads))
        batch = uploads[start : start + ENCODE_BATCH]
        parts.append(encoders.encode([content_of(upload, settings.uploads) for upload in batch]))
    report("encode", 1.0)
    return Embeddings(
        np.concatenate([part.text_BD for part in parts]),
        np.concatenate([part.frames_BD for part in parts]),
        np.concatenate([part.audio_BD for part in parts]),
        np.concatenate([part.present_BM for part in parts]),
    )

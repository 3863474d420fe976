"""Fits the first codebook, or the next, to a catalogue and publishes it with its card; knows nothing of Kafka.

The uploads worker starts only where a codebook was published, so this runs once before it, in its own process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from safetensors.torch import save

from infra.errors import ConfigError
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import (
    GRAPH_FILE,
    WEIGHTS_FILE,
    CodebookManifest,
    next_version,
    publish_codebook,
)
from models.codebook_card import Evidence, codebook_card
from models.encoders import Embeddings, Encoders
from models.onnx_quantizer import OnnxQuantizer, QuantizedBatch
from models.quantizer import QuantizerConfig
from models.quantizer_export import export_quantizer
from models.quantizer_fit import Progress, fit_quantizer
from streams.events import CodesComputed, VideoUploaded, WatchEvent
from workers.bootstrap_data import Later, labels_of, pair_rows
from workers.catalogue_encoding import EncodedCatalogue, encode_catalogue, publish_encoders
from workers.codebook_picture import picture
from workers.featurize import codes_computed

CARD_FILE = "card.json"
PICTURE_FILE = "card.png"
DISAMBIGUATION_SIZE = 64


@dataclass(frozen=True)
class FittedCodebook:
    """A published codebook, and what it makes of the catalogue it was fitted to, in the catalogue's order.

    Attributes:
        skipped: video_id -> why it could not be encoded; `embeddings` and `quantized` have no row for it.
    """

    manifest: CodebookManifest
    embeddings: Embeddings
    quantized: QuantizedBatch
    skipped: Mapping[str, str]

    def codes_computed(
        self, uploads: Sequence[VideoUploaded], *, append_time_ms: int
    ) -> Iterator[CodesComputed]:
        """Yield the events from which the uploads worker assigns semantic IDs, without encoding anything again.

        Their position is before that of any upload in Kafka, so that every later edit is newer.
        """
        encoded = [upload for upload in uploads if upload.video_id not in self.skipped]
        for upload, row in zip(encoded, self.quantized.split(), strict=True):
            yield codes_computed(
                upload, row, self.manifest, append_time_ms=append_time_ms, position=-1
            )


@dataclass(frozen=True)
class CodedCatalogue:
    """A fitted quantizer's files, and what its graph, as the workers will run it, makes of the encoded catalogue."""

    graph: bytes
    weights: bytes
    manifest: CodebookManifest
    quantized: QuantizedBatch
    card: dict[str, Any]


def fit_codebook(
    uploads: Sequence[VideoUploaded],
    settings: Settings,
    *,
    config: QuantizerConfig | None = None,
    watches: Sequence[WatchEvent] = (),
    later: Later | None = None,
    progress: Progress | None = None,
) -> FittedCodebook:
    """Encode a catalogue, fit a quantizer to it and publish both, the new codebook as the current one.

    Args:
        uploads: the catalogue, or its earlier part; a video that cannot be encoded is left out, and named on the card.
        settings: names the object store, media roots and seed.
        config: of the quantizer.
        watches: from before the cut; who watched what after what may shape the codebooks.
        later: what the card judges the codebook by.
        progress: told the stage ("encoders", "encode", "fusion", "codebooks", "publish") and the share done of it.

    Raises:
        ConfigError: the encoders' weights are not installed, or there are fewer uploads than a level has codes.
    """
    later = later or Later()
    report = progress or (lambda _stage, _share: None)
    store = ObjectStore(settings.storage.root)
    report("encoders", 0.0)
    own = settings.uploads.encoders
    encoders = Encoders(publish_encoders(store, settings.var_dir / "cache", own=own))
    catalogue = encode_catalogue(encoders, uploads, later.held_out, settings, progress=report)
    coded = fit_encoded(
        catalogue,
        config or QuantizerConfig(),
        watches=watches,
        later=later,
        encoders_sha256=encoders.manifest.digest,
        codebook_version=next_version(store),
        seed=settings.seed,
        progress=report,
    )
    report("publish", 0.0)
    files = {
        GRAPH_FILE: coded.graph,
        WEIGHTS_FILE: coded.weights,
        CARD_FILE: json.dumps(coded.card, indent=2).encode() + b"\n",
        PICTURE_FILE: picture(coded.card),
    }
    manifest = publish_codebook(store, coded.manifest, files)
    report("publish", 1.0)
    fitted = QuantizedBatch(
        **{
            each.name: getattr(coded.quantized, each.name)[: catalogue.num_fitted]
            for each in fields(QuantizedBatch)
        }
    )
    return FittedCodebook(manifest, catalogue.fitted, fitted, catalogue.skipped)


def fit_encoded(
    catalogue: EncodedCatalogue,
    config: QuantizerConfig,
    *,
    watches: Sequence[WatchEvent],
    later: Later,
    encoders_sha256: str,
    codebook_version: int,
    seed: int,
    progress: Progress,
) -> CodedCatalogue:
    """Fit a quantizer to the catalogue's first part, code all of it, and judge that; publish nothing.

    Raises:
        ConfigError: there are fewer videos to fit on than the largest level has codes.
    """
    if catalogue.num_fitted < max(config.codebook_sizes):
        raise ConfigError(
            f"{catalogue.num_fitted} videos cannot fill a level of {max(config.codebook_sizes)} codes: "
            "fit on a larger share of the catalogue"
        )
    video_ids = [upload.video_id for upload in catalogue.uploads]
    quantizer = fit_quantizer(
        catalogue.fitted,
        config=config,
        seed=seed,
        progress=progress,
        pairs=pair_rows(watches, video_ids[: catalogue.num_fitted]),
    )
    graph = export_quantizer(quantizer, codebook_version=codebook_version)
    manifest = CodebookManifest(
        codebook_version=codebook_version,
        codebook_sizes=config.codebook_sizes,
        disambiguation_size=DISAMBIGUATION_SIZE,
        embedding_dim=config.embedding_dim,
        encoders_sha256=encoders_sha256,
        quantizer=config.to_json(),
        card={},
        files={},
    )
    quantized = OnnxQuantizer(manifest, graph).quantize(catalogue.embeddings)
    evidence = Evidence(
        num_fitted=catalogue.num_fitted,
        label_N=labels_of(catalogue.uploads, later.categories),
        pair_P2=pair_rows(later.watches, video_ids),
        notes=later.notes,
    )
    card = {
        "codebook_version": codebook_version,
        "quantizer": config.to_json(),
        **codebook_card(quantized, config.codebook_sizes, evidence, seed=seed),
        "skipped": dict(catalogue.skipped),
        "malformed": list(later.malformed),
    }
    return CodedCatalogue(
        graph,
        save(dict(quantizer.state_dict())),
        replace(manifest, card=card),
        quantized,
        card,
    )

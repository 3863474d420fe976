"""Encodes a whole catalogue at once, for the fit of a codebook; knows nothing of quantizers and of Kafka."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import DecodeError, TransientError
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import ENCODERS_KEY
from models.encoder_export import build_encoders
from models.encoder_manifest import MANIFEST_FILE
from models.encoders import Content, Embeddings, Encoders
from models.quantizer_fit import Progress
from streams.events import VideoUploaded
from workers.featurize import content_of

ENCODE_BATCH = 256


@dataclass(frozen=True)
class EncodedCatalogue:
    """The uploads that could be encoded, row by row: first those to fit on, then those held out.

    Attributes:
        num_fitted: how many are to fit on.
        skipped: video_id -> why it could not be encoded; it has no row.
    """

    uploads: Sequence[VideoUploaded]
    embeddings: Embeddings
    num_fitted: int
    skipped: Mapping[str, str]

    @property
    def fitted(self) -> Embeddings:
        """The embeddings to fit on."""
        rows = {each.name: getattr(self.embeddings, each.name) for each in fields(Embeddings)}
        return Embeddings(**{name: values[: self.num_fitted] for name, values in rows.items()})


def encode_catalogue(
    encoders: Encoders,
    uploads: Sequence[VideoUploaded],
    held_out: Sequence[VideoUploaded],
    settings: Settings,
    *,
    progress: Progress,
) -> EncodedCatalogue:
    """Encode uploads to fit on and others; one whose content cannot be used is left out and said to be.

    Blocks: for as long as that takes; `progress` is told ("encode", share done).
    """
    everything = [*uploads, *held_out]
    skipped: dict[str, str] = {}
    encoded: list[VideoUploaded] = []
    parts: list[Embeddings] = []
    for start in range(0, max(1, len(everything)), ENCODE_BATCH):
        progress("encode", start / max(1, len(everything)))
        contents: list[Content] = []
        for upload in everything[start : start + ENCODE_BATCH]:
            try:
                contents.append(
                    content_of(upload, settings.uploads, frame_size=encoders.frame_size)
                )
                encoded.append(upload)
            except DecodeError as error:
                skipped[upload.video_id] = f"{error.reason}: {error}"
            except TransientError as error:
                skipped[upload.video_id] = str(error)
        parts.append(encoders.encode(contents))
    together = {
        each.name: np.concatenate([getattr(part, each.name) for part in parts])
        for each in fields(Embeddings)
    }
    usable = _usable(encoded, Embeddings(**together), skipped)
    embeddings = Embeddings(**{name: values[usable] for name, values in together.items()})
    kept = [upload for upload, is_usable in zip(encoded, usable, strict=True) if is_usable]
    progress("encode", 1.0)
    num_fitted = sum(upload.video_id not in skipped for upload in uploads)
    return EncodedCatalogue(kept, embeddings, num_fitted, skipped)


def _usable(
    uploads: Sequence[VideoUploaded], embeddings: Embeddings, skipped: dict[str, str]
) -> NDArray[np.bool_]:
    """Return which rows a quantizer takes; the others are added to `skipped`, with its own reasons."""
    values = [getattr(embeddings, each.name) for each in fields(Embeddings)]
    usable = np.ones(len(uploads), bool)
    for row, upload in enumerate(uploads):
        if not all(np.isfinite(each[row]).all() for each in values):
            skipped[upload.video_id] = "nan_embedding: an encoder returned numbers not finite"
        elif not embeddings.present_BM[row].any():
            skipped[upload.video_id] = "no_content: no text, frames or sound to code"
        usable[row] = upload.video_id not in skipped
    return usable


def publish_encoders(store: ObjectStore, cache: Path, *, own: Path | None = None) -> Path:
    """Return a local folder with the store's encoders, building them where they are missing or out of date.

    Those that the folder `own` declares take the places of built-in ones.
    """
    if store.is_local:
        directory = store.local_directory(ENCODERS_KEY, cache)
        build_encoders(directory, own=own)
        return directory
    directory = cache / "export" / ENCODERS_KEY
    manifest = build_encoders(directory, own=own)
    key = f"{ENCODERS_KEY}/{MANIFEST_FILE}"
    if not store.exists(key) or store.get_bytes(key) != manifest.to_json().encode():
        for spec in manifest.encoders:
            for name in spec.files:
                store.put_bytes(f"{ENCODERS_KEY}/{name}", (directory / name).read_bytes())
        store.put_bytes(key, manifest.to_json().encode())  # last: it names all the others
    return directory

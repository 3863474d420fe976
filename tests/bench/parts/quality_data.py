"""A catalogue with its codes and the watches of it, as every model of the quality benchmark is given them.

Encoders, quantizer and allocation are the project's own, without Kafka. Items are numbered in the order of upload, so
that what was uploaded by some time is a prefix. Knows nothing of models that recommend.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from infra.settings import Settings
from infra.storage import ObjectStore
from models.allocation import Allocator
from models.code_embeddings import read_code_vectors
from models.encoders import Encoders
from models.quantizer import QuantizerConfig
from models.semantic_id import SemanticIdSpace
from models.trie import LiveTrie, TrieView
from models.two_tower import ItemContents
from streams.events import VideoUploaded, WatchEvent
from streams.shards import NewWatch
from streams.timeline import Timeline
from workers.bootstrap import rows_of
from workers.bootstrap_codebook import fit_encoded
from workers.bootstrap_data import Later, catalogue_of
from workers.catalogue_encoding import EncodedCatalogue, encode_catalogue, publish_encoders
from workers.training_actor import Video


@dataclass(frozen=True)
class Catalogue:
    """Every item of a timeline, in the order of upload.

    Attributes:
        num_fitted: how many of them the codebook was fitted on.
        contents: the fused embedding and the flat cluster that come with the codes.
        code_vectors: the codebook's, [K, C] for each level.
    """

    space: SemanticIdSpace
    video_ids: Sequence[str]
    upload_times_ms: Sequence[int]
    videos: dict[str, Video]
    contents: ItemContents
    num_clusters: int
    num_fitted: int
    code_vectors: Sequence[Tensor] = ()

    def __len__(self) -> int:
        return len(self.video_ids)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Each item's number."""
        return {video_id: number for number, video_id in enumerate(self.video_ids)}

    def num_live(self, at_ms: int) -> int:
        """Return how many items were uploaded by a time."""
        return bisect_right(self.upload_times_ms, at_ms)

    def view(self, num_live: int) -> TrieView:
        """Return the trie of the first items."""
        trie = LiveTrie(self.space)
        ids = list(self.video_ids[:num_live])
        semantic_ids = [self.videos[one].semantic_id for one in ids]
        trie.insert_many(semantic_ids, ids, list(self.upload_times_ms[:num_live]))
        return trie.view


def encode(
    earlier: Timeline, later: Timeline, settings: Settings, folder: Path
) -> tuple[EncodedCatalogue, str]:
    """Return both parts' items encoded, with the encoders' digest; an item of the later part as it was uploaded."""
    store = ObjectStore(str(folder / "store"))
    encoders = Encoders(publish_encoders(store, folder / "cache"), num_threads=1)
    known = {upload.video_id for upload in earlier.uploads()}
    first: dict[str, VideoUploaded] = {}
    for upload in later.uploads():
        if upload.video_id not in known:
            first.setdefault(upload.video_id, upload)
    found = encode_catalogue(
        encoders, catalogue_of(earlier), list(first.values()), settings, progress=_ignore
    )
    return found, encoders.manifest.digest


def coded(encoded: EncodedCatalogue, encoders_sha256: str, *, steps: int, seed: int) -> Catalogue:
    """Fit a codebook to the earlier part of a catalogue and give every item its semantic ID, in order of upload."""
    config = QuantizerConfig(steps=steps)
    fitted = fit_encoded(
        encoded,
        config,
        watches=(),
        later=Later(),
        encoders_sha256=encoders_sha256,
        codebook_version=1,
        seed=seed,
        progress=_ignore,
    )
    space, allocator = fitted.manifest.space, Allocator()
    videos: dict[str, Video] = {}
    for upload, codes in zip(encoded.uploads, fitted.quantized.codes_BL.tolist(), strict=True):
        last, _ = allocator.allocate(
            space.codebook_version,
            tuple(codes),
            upload.video_id,
            capacity=space.disambiguation_size,
        )
        videos[upload.video_id] = Video(
            (*codes, last),
            upload.title,
            upload.channel,
            upload.topics,
            upload.language,
            upload.duration_s,
            _upload_time_ms(upload),
        )
    contents = ItemContents(
        list(videos),
        torch.from_numpy(fitted.quantized.embedding_BD).float(),
        torch.from_numpy(fitted.quantized.cluster_id_B),
    )
    times_ms = list(map(_upload_time_ms, encoded.uploads))
    return Catalogue(
        space,
        list(videos),
        times_ms,
        videos,
        contents,
        config.num_clusters,
        encoded.num_fitted,
        read_code_vectors(fitted.weights, space),
    )


def _upload_time_ms(upload: VideoUploaded) -> int:
    return upload.upload_time_ms or upload.event_time_ms


def watches_by_user(watches: Sequence[WatchEvent]) -> dict[str, list[NewWatch]]:
    """Return each user's watches in time order, as shards hold them."""
    found: dict[str, list[NewWatch]] = defaultdict(list)
    for row in rows_of(watches, 1):
        found[row.user_id] += row.watches
    return dict(found)


def _ignore(stage: str, share: float) -> None:
    """Take a fit's progress, which the benchmark does not show."""

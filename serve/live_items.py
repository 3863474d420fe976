"""Brings what a two-tower ranks up to the live catalogue, beside the requests; knows nothing of swaps and topics.

A video joins with its content vector and cluster, as `video.semantic_ids` carries them; one without them, or with ones
that are not of the model's kind, is passed over. Work follows what changed, but for one pass over the ids, and takes at
most `REFRESH_SHARE` of a core, however many videos there are and however often one comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from infra.log import get_logger
from models.live_retriever import LiveRetriever
from models.two_tower import ItemContents
from serve.views import CatalogueView
from streams.codes import decode_embedding
from streams.events import SemanticIdAssigned

REFRESH_SHARE = 0.05

log = get_logger()


@dataclass(frozen=True)
class KnownItems:
    """The catalogue as a retriever was last told of it; immutable."""

    at_change: int = -1
    videos: Mapping[str, SemanticIdAssigned] = field(default_factory=dict)


class LiveItems:
    """Tells a retriever what came, changed and went; one thread asks, and no retriever in use changes."""

    def __init__(
        self,
        catalogue: CatalogueView,
        *,
        now_s: Callable[[], float] = time.monotonic,
        worked_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """Start without having told anything; the clocks are of time, and of the thread's work."""
        self._catalogue, self._now_s, self._worked_s = catalogue, now_s, worked_s
        self._not_before_s = now_s()

    def due(self, known: KnownItems) -> bool:
        """Return whether the catalogue has changed since, and the last time is long enough ago for the work it was."""
        changed = known.at_change != self._catalogue.changes
        return changed and self._now_s() >= self._not_before_s

    def brought_up_to_date(
        self, retriever: LiveRetriever, known: KnownItems
    ) -> tuple[LiveRetriever, KnownItems]:
        """Return a retriever of what is live now, and what that is.

        Args:
            retriever: stays as it is.
            known: what it was told last; a new one has been told of nothing, whatever it was trained on.
        """
        started_s = self._worked_s()
        # Read before the videos are: what comes between the two is looked for again next time.
        at_change = self._catalogue.changes
        videos = dict(self._catalogue.catalogue.videos)
        changed = {
            one: video for one, video in videos.items() if known.videos.get(one) is not video
        }
        contents = _contents(retriever, changed.values())
        gone: Collection[str] = retriever.item_ids
        if known.at_change >= 0:
            gone = (known.videos.keys() - videos.keys()) | changed.keys()
        found = retriever.with_items(contents, gone=gone)
        work_s = self._worked_s() - started_s
        self._not_before_s = self._now_s() + work_s / REFRESH_SHARE
        log.debug(
            "items_refreshed",
            items=len(found),
            changed=len(contents),
            passed_over=len(videos) - len(found),
            work_s=round(work_s, 4),
        )
        return found, KnownItems(at_change, videos)


def has_content(video: SemanticIdAssigned) -> bool:
    """Return whether an item tower can be told anything of a video; those of early codebooks have nothing."""
    return bool(video.embedding_f16) and video.cluster_id is not None


def _contents(retriever: LiveRetriever, videos: Iterable[SemanticIdAssigned]) -> ItemContents:
    """Return what the item tower is told of some videos; those of which it can be told nothing are left out."""
    config, dim = retriever.model.config, retriever.model.content_NC.shape[1]
    ids: list[str] = []
    clusters: list[int] = []
    embeddings: list[NDArray[np.float16]] = []
    for video in videos:
        embedding = _embedding(video)
        if embedding is None or embedding.shape != (dim,):
            continue
        if video.cluster_id is None or not 0 <= video.cluster_id < config.num_clusters:
            continue
        ids.append(video.video_id)
        clusters.append(video.cluster_id)
        embeddings.append(embedding)
    content = np.empty((len(embeddings), dim), dtype=np.float32)
    for row, embedding in enumerate(embeddings):
        content[row] = embedding
    return ItemContents(ids, torch.from_numpy(content), torch.tensor(clusters, dtype=torch.int64))


def _embedding(video: SemanticIdAssigned) -> NDArray[np.float16] | None:
    try:
        embedding = decode_embedding(video.embedding_f16)
    except ValueError:
        return None
    return embedding if np.isfinite(embedding).all() else None

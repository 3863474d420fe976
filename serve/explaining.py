"""Why a video is for a viewer: gathers the evidence that the replica has; the sentence is `models.explanations`'.

Knows nothing of Ray and HTTP.
"""

from __future__ import annotations

from dataclasses import asdict

from models.explanations import explain
from serve.asking import Asking
from serve.co_watches import CoWatches
from serve.model_slots import ModelSlots
from serve.neighbours import Neighbours
from serve.schemas import ExplanationRequest, ExplanationResponse
from serve.turns import Turns
from serve.views import CatalogueView

NEIGHBOURS = 20


class Explainer:
    """Explains videos; callers take turns."""

    def __init__(
        self,
        catalogue: CatalogueView,
        models: ModelSlots,
        asking: Asking,
        co_watches: CoWatches,
        neighbours: Neighbours,
        *,
        turns: Turns,
    ) -> None:
        self._catalogue, self._models, self._asking = catalogue, models, asking
        self._co_watches, self._neighbours = co_watches, neighbours
        self._turns = turns

    def explain(self, asked: ExplanationRequest) -> ExplanationResponse | None:
        """Return a sentence and what it rests on; None for a video that is not live.

        Raises:
            Overloaded: too many wait already.
        """
        video, bundle = self._catalogue.catalogue.get(asked.video_id), self._models.lrm
        if video is None:
            return None
        viewer = self._asking.viewer(asked)
        near = self._neighbours.of(
            asked.video_id, NEIGHBOURS, codebook_version=video.codebook_version
        )
        with self._turns.taken():
            if self._catalogue.catalogue.get(asked.video_id) is None:
                return None  # removed meanwhile
            found = explain(
                bundle.lrm if bundle else None,
                video,
                viewer.features,
                viewer.watches,
                self._catalogue.catalogue.videos,
                co_watched=self._co_watches.before(asked.video_id),
                neighbours=near,
            )
        return ExplanationResponse(
            video_id=asked.video_id,
            text=found.text,
            source=found.source,
            evidence=asdict(found.evidence),
            model_version=bundle.model_version if bundle and found.source == "model" else 0,
        )

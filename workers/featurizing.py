"""The featurize loop: one record of `video.uploads` -> codes, a retirement, or a dead letter.

Knows nothing of how content becomes codes (`workers.featurize`), of who hands out disambiguation codes, and of Faust.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra import metrics
from infra.errors import DecodeError
from infra.settings import UploadSettings
from models.encoders import Content
from models.onnx_quantizer import QuantizedBatch
from streams.catalogue import upload_position
from streams.codec import decode_upload
from streams.codes import codes_key
from streams.events import VideoRemoved, VideoUploaded, to_json
from streams.topics import CODES, UPLOADS
from workers.decoders import MediaDecoders
from workers.drift import CodebookDrift
from workers.faust_app import Outgoing, Publisher
from workers.featurize import Featurizer, check_times, codes_computed, content_from
from workers.in_order import Batcher
from workers.refusing import refused
from workers.settling import retirement

# Decoded media waiting for the encoders; at 5 frames and 60 s of sound one item holds 5 MB.
MEDIA_IN_HAND_MAX = 8
# A video with frames keeps the encoders as busy as so many titles.
MEDIA_COST = 16


class FeaturizeLoop:
    """What is made of each upload; see `handle` for what a crash costs."""

    def __init__(
        self,
        settings: UploadSettings,
        featurizer: Featurizer,
        decoders: MediaDecoders,
        publisher: Publisher,
        *,
        codebook_versions: Sequence[int],
    ) -> None:
        """Retire removed videos under each of `codebook_versions`; code under the featurizer's own."""
        self._settings = settings
        self._codebook = featurizer.codebook
        self._versions = codebook_versions
        self._decoders = decoders
        self._publisher = publisher
        self._drift = CodebookDrift(featurizer.codebook)
        self._media_in_hand = asyncio.Semaphore(MEDIA_IN_HAND_MAX)
        # One thread: the encoders use all cores by themselves, and the event loop stays free.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="featurize")
        self._coded: Batcher[Content, QuantizedBatch | DecodeError] = Batcher(
            self._thread, featurizer.featurize, cost=_cost, cost_max=settings.batch_max
        )

    async def handle(self, event: Any) -> None:
        """Turn an upload into codes, a removal into retirements, and the rest into a dead letter.

        Delivery: on return the outcome is durable. Killed before that it may or may not be, and the record comes again:
        the same codes at the same position, for which allocation and settling have the same answer.
        """
        try:
            outgoing = await self._outcome(event)
        except DecodeError as error:
            outgoing = [refused(UPLOADS, event, error)]
        await self._publisher.publish(outgoing)

    async def _outcome(self, event: Any) -> list[Outgoing]:
        upload = decode_upload(event.value)
        append_time_ms = round(event.message.timestamp * 1000)
        check_times(upload, append_time_ms, slack_s=self._settings.future_slack_s)
        # What our own tools send again keeps the position it had, so that it reverts no later edit.
        sent_again = upload_position(event.headers.items())
        position = event.message.offset if sent_again is None else sent_again
        if isinstance(upload, VideoRemoved):
            metrics.RECORDS.labels(UPLOADS.name, "removed").inc()
            return retirement(upload.video_id, self._versions, position=position)
        coded = await self._code(upload)
        if isinstance(coded, DecodeError):
            raise coded
        self._drift.observe(coded.codes_BL, coded.residual_norm_B)
        computed = codes_computed(
            upload,
            coded,
            self._codebook,
            append_time_ms=append_time_ms,
            position=position,
        )
        metrics.RECORDS.labels(UPLOADS.name, "coded").inc()
        key = codes_key(computed.codebook_version, computed.codes)
        return [Outgoing(CODES, key.encode(), to_json(computed))]

    async def _code(self, upload: VideoUploaded) -> QuantizedBatch | DecodeError:
        if upload.media_uri is None:
            return await self._coded.submit(content_from(upload, None, self._settings))
        media = await self._decoders.load(upload.media_uri, slots=self._media_in_hand)
        try:
            return await self._coded.submit(content_from(upload, media, self._settings))
        finally:
            self._media_in_hand.release()

    def close(self) -> None:
        """Let go of the thread and the decoders."""
        self._decoders.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _cost(content: Content) -> int:
    return 1 if content.frames is None and content.waveform is None else MEDIA_COST

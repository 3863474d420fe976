from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import DecodeError, TransientError, VersionMismatchError
from infra.settings import UploadSettings
from models.codebook import CodebookManifest
from models.encoders import Content
from models.media import Media
from models.onnx_quantizer import QuantizedBatch
from streams.codes import decode_embedding
from streams.events import VideoUploaded
from workers.featurize import (
    Featurizer,
    clean_text,
    codes_computed,
    content_from,
    content_of,
    upload_text,
)

UPLOAD = VideoUploaded(
    event_time_ms=5,
    video_id="v1",
    title="Cleo\u200e the dog",
    description="She\u202e\nfet\x00ches.",
    tags=("dog", "fetch"),
    channel="Pets",
    topics=("Animals", "Comedy"),
    transcript="woof",
)
CODEBOOK = CodebookManifest(
    codebook_version=3,
    codebook_sizes=(4, 2),
    disambiguation_size=8,
    embedding_dim=3,
    encoders_sha256="right",
    quantizer={},
    card={},
    files={},
)


class FakeEncoders:
    """Passes the contents through; its manifest has the digest it is told."""

    def __init__(self, digest: str) -> None:
        self.manifest = self
        self.digest = digest
        self.frame_size = 224

    def encode(self, contents: list[Content]) -> list[Content]:
        return contents


class PoisonedQuantizer:
    """Refuses every batch that has a poisoned text in it."""

    manifest = CODEBOOK

    def quantize(self, contents: list[Content]) -> QuantizedBatch:
        if any(content.text == "poison" for content in contents):
            raise DecodeError("not finite", "nan_embedding")
        rows = len(contents)
        codes_BL = np.array([[len(content.text), 1] for content in contents])
        embedding_BD, norm_B = np.ones((rows, 3), np.float16), np.zeros(rows, np.float32)
        return QuantizedBatch(codes_BL, embedding_BD, norm_B, np.zeros(rows, np.int64))


def featurizer(digest: str = "right") -> Featurizer:
    encoders: Any = FakeEncoders(digest)
    quantizer: Any = PoisonedQuantizer()
    return Featurizer(encoders, quantizer)


def test_upload_text_has_the_title_first_and_no_control_or_bidirectional_characters() -> None:
    assert upload_text(UPLOAD, 1000) == (
        "Cleo the dog\nAnimals, Comedy\ndog, fetch\nPets\nShe fetches.\nwoof"
    )


def test_upload_text_longer_than_the_limit_loses_its_end() -> None:
    assert upload_text(UPLOAD, 12) == "Cleo the dog"


def test_clean_text_keeps_what_other_scripts_are_spelt_with() -> None:
    assert clean_text("می\u200cخواهم 👩\u200d🚀") == "می\u200cخواهم 👩\u200d🚀"


def test_media_that_is_not_there_may_come_back(tmp_path: Path) -> None:
    upload = UPLOAD.model_copy(update={"media_uri": str(tmp_path / "late.mp4")})
    with pytest.raises(TransientError):
        content_of(upload, UploadSettings(media_roots=(str(tmp_path),)))


def test_media_that_is_not_what_it_claims_is_refused(tmp_path: Path) -> None:
    clip = tmp_path / "text.mp4"
    clip.write_text("not a film")
    upload = UPLOAD.model_copy(update={"media_uri": str(clip)})
    with pytest.raises(DecodeError) as refusal:
        content_of(upload, UploadSettings(media_roots=(str(tmp_path),)))
    assert refusal.value.reason == "media_undecodable"


def test_transcript_is_the_events_or_else_the_subtitles() -> None:
    media = Media(None, np.zeros(3, np.float32), "meow")
    settings = UploadSettings()
    assert content_from(UPLOAD, media, settings).text.endswith("woof")
    for transcript in (None, " "):
        silent = UPLOAD.model_copy(update={"transcript": transcript})
        assert content_from(silent, media, settings).text.endswith("fetches.\nmeow")
        assert content_from(silent, None, settings).text.endswith("fetches.")


def test_content_has_the_frames_and_the_sound_of_its_media() -> None:
    media = Media(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.float32))
    content = content_from(UPLOAD, media, UploadSettings())
    assert content.frames is media.frames
    assert content.waveform is media.waveform
    assert content_from(UPLOAD, None, UploadSettings()) == Content(content.text)


def test_codes_carry_what_later_stages_need_of_the_upload() -> None:
    quantized = QuantizedBatch(
        np.array([[3, 1]]),
        np.array([[0.5, -1, 2]], np.float16),
        np.zeros(1, np.float32),
        np.array([17]),
    )
    computed = codes_computed(UPLOAD, quantized, CODEBOOK, append_time_ms=9, position=11)
    assert (computed.codes, computed.codebook_version) == ((3, 1), 3)
    assert computed.cluster_id == 17
    assert (computed.video_id, computed.title, computed.topics) == (
        "v1", UPLOAD.title, UPLOAD.topics,
    )  # fmt: skip
    assert (computed.upload_time_ms, computed.upload_append_time_ms) == (5, 9)
    assert computed.upload_position == 11
    assert decode_embedding(computed.embedding_f16).tolist() == [0.5, -1, 2]


def test_featurizer_refuses_a_poisoned_video_and_codes_the_others() -> None:
    results = featurizer().featurize([Content("a"), Content("poison"), Content("abc")])
    reasons = [getattr(result, "reason", None) for result in results]
    assert reasons == [None, "nan_embedding", None]
    codes = [r.codes_BL.tolist() for r in results if isinstance(r, QuantizedBatch)]
    assert codes == [[[1, 1]], [[3, 1]]]


def test_featurizer_refuses_encoders_that_the_codebook_was_not_fitted_on() -> None:
    with pytest.raises(VersionMismatchError, match="fitted on encoders right"):
        featurizer("wrong")

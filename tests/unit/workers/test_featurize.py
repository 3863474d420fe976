from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import DecodeError, TransientError, VersionMismatchError
from infra.settings import UploadSettings
from models.codebook import CodebookManifest
from models.encoders import Content
from models.onnx_quantizer import QuantizedBatch
from streams.codes import decode_embedding
from streams.events import VideoUploaded
from workers.featurize import (
    Featurizer,
    clean_text,
    codes_computed,
    content_of,
    resolve_media,
    upload_text,
)

UPLOAD = VideoUploaded(
    event_time_ms=5,
    video_id="v1",
    title="Cleo\u202e the\x00 dog",
    description="She\nfetches.",
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
        return QuantizedBatch(codes_BL, np.ones((rows, 3), np.float16), np.zeros(rows, np.float32))


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


def test_media_inside_a_root_is_found_by_path_and_by_uri(tmp_path: Path) -> None:
    clip = tmp_path / "a clip.mp4"
    clip.touch()
    assert resolve_media(str(clip), [str(tmp_path)]) == clip
    assert resolve_media(clip.as_uri(), [str(tmp_path)]) == clip


def test_media_outside_the_roots_is_refused_however_it_is_spelt(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret.mp4"
    root.mkdir()
    secret.touch()
    (root / "link.mp4").symlink_to(secret)
    for uri in (
        str(secret),
        secret.as_uri(),
        f"{root}/../secret.mp4",
        f"file://{root}/%2e%2e/secret.mp4",
        f"{root}/link.mp4",
        f"{root}-sibling/secret.mp4",
        "/etc/passwd",
    ):
        with pytest.raises(DecodeError) as refusal:
            resolve_media(uri, [str(root)])
        assert refusal.value.reason == "media_outside_roots", uri


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1/clip.mp4", "file://elsewhere/clip.mp4", "file://[x/", "a\0b", "x" * 2000],
)
def test_media_uri_that_names_no_file_of_ours_is_refused(uri: str) -> None:
    with pytest.raises(DecodeError) as refusal:
        resolve_media(uri, ["."])
    assert refusal.value.reason == "media_uri"


def test_media_in_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    with pytest.raises(DecodeError):
        resolve_media(str(tmp_path / "loop.mp4"), [str(tmp_path)])


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


def test_codes_carry_what_later_stages_need_of_the_upload() -> None:
    quantized = QuantizedBatch(
        np.array([[3, 1]]), np.array([[0.5, -1, 2]], np.float16), np.zeros(1, np.float32)
    )
    computed = codes_computed(UPLOAD, quantized, CODEBOOK, append_time_ms=9, position=11)
    assert (computed.codes, computed.codebook_version) == ((3, 1), 3)
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

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from infra.settings import Settings
from models.encoders import Content, Embeddings, Encoders
from streams.events import VideoUploaded
from workers.catalogue_encoding import ENCODE_BATCH, EncodedCatalogue, encode_catalogue


class EncodersThatReturnNanForAWord:
    """Encodes a text as its length; one with "cursed" in it as NaN."""

    frame_size = 224

    def encode(self, contents: Sequence[Content]) -> Embeddings:
        text_BD = np.array(
            [[np.nan if "cursed" in each.text else len(each.text)] for each in contents]
        )
        present_BM = np.array([[bool(each.text), False, False] for each in contents], bool)
        nothing_BD = np.zeros((len(contents), 1), np.float32)
        return Embeddings(
            text_BD.reshape(-1, 1).astype(np.float32),
            nothing_BD,
            nothing_BD,
            present_BM.reshape(-1, 3),
        )


def upload(video_id: str, title: str, media_uri: str | None = None) -> VideoUploaded:
    return VideoUploaded(event_time_ms=0, video_id=video_id, title=title, media_uri=media_uri)


def encode(uploads: list[VideoUploaded], held_out: list[VideoUploaded]) -> EncodedCatalogue:
    encoders = cast(Encoders, EncodersThatReturnNanForAWord())
    return encode_catalogue(
        encoders, uploads, held_out, Settings(), progress=lambda stage, share: None
    )


def test_catalogue_keeps_fitted_videos_before_those_held_out() -> None:
    found = encode([upload("a", "1"), upload("b", "22")], [upload("c", "333")])
    assert [each.video_id for each in found.uploads] == ["a", "b", "c"]
    assert found.embeddings.text_BD.ravel().tolist() == [1, 2, 3]
    assert found.num_fitted == 2
    assert found.fitted.text_BD.ravel().tolist() == [1, 2]
    assert found.skipped == {}


def test_videos_that_cannot_be_encoded_are_named_and_spoil_no_row() -> None:
    uploads = [
        upload("outside", "1", "/etc/hosts"),
        upload("a", "1"),
        upload("gone", "1", "streams/data/clips/gone.mp4"),
        upload("nan", "cursed"),
        upload("empty", ""),
    ]
    found = encode(uploads, [upload("later-nan", "cursed"), upload("b", "22")])
    assert [each.video_id for each in found.uploads] == ["a", "b"]
    assert found.embeddings.text_BD.ravel().tolist() == [1, 2]
    assert found.num_fitted == 1
    assert {video_id: why.split(":")[0] for video_id, why in found.skipped.items()} == {
        "outside": "media_outside_roots",
        "gone": "media_uri 'streams/data/clips/gone.mp4' names no file",
        "nan": "nan_embedding",
        "empty": "no_content",
        "later-nan": "nan_embedding",
    }


def test_catalogue_of_several_batches_loses_nothing_between_them() -> None:
    uploads = [upload(str(at), "x" * (at % 7 + 1)) for at in range(ENCODE_BATCH + 3)]
    found = encode(uploads, [])
    assert [each.video_id for each in found.uploads] == [each.video_id for each in uploads]
    lengths = [len(each.title) for each in uploads]
    assert found.embeddings.text_BD.ravel().tolist() == lengths


def test_empty_catalogue_is_encoded_as_no_rows() -> None:
    found = encode([], [])
    assert (len(found.uploads), len(found.embeddings.present_BM), found.num_fitted) == (0, 0, 0)

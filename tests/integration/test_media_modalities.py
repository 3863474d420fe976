"""The same title with other pictures, other sound or other words is another video to the encoders, in that alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.settings import UploadSettings
from models.encoders import Content, Embeddings, Encoders
from streams.events import VideoUploaded
from tests.clip_factories import BLUE, RED, Sound, Stream, Subtitles, Video, clip_bytes
from workers.featurize import content_of

pytestmark = pytest.mark.integration

STREAMS: dict[str, Stream] = {
    "frames_BD": Video(),
    "audio_BD": Sound(),
    "text_BD": Subtitles(cues=("Today we bake bread", "with flour and water")),
}
OTHERS: dict[str, Stream] = {
    "frames_BD": Video(colours=(RED,) * 10 + (BLUE,) * 10, width=96),
    "audio_BD": Sound(hz=3000.0),
    "text_BD": Subtitles(cues=("The rocket engine", "is tested at night")),
}
SAME_COSINE = 0.99  # a lossy codec alone stays above


@pytest.fixture(scope="module")
def encoders(encoders_directory: Path) -> Encoders:
    return Encoders(encoders_directory, num_threads=2)


def embed(encoders: Encoders, folder: Path, streams: dict[str, Stream]) -> Embeddings:
    (folder / "clip.mp4").write_bytes(clip_bytes("mp4", *streams.values()))
    upload = VideoUploaded(
        event_time_ms=0, video_id="v", title="One title", media_uri=str(folder / "clip.mp4")
    )
    content: Content = content_of(upload, UploadSettings(media_roots=(str(folder),)))
    return encoders.encode([content])


@pytest.mark.parametrize("changed", STREAMS)
def test_clip_that_differs_in_one_modality_is_another_video_in_that_alone(
    changed: str, encoders: Encoders, tmp_path: Path
) -> None:
    before = embed(encoders, tmp_path, STREAMS)
    after = embed(encoders, tmp_path, STREAMS | {changed: OTHERS[changed]})
    assert before.present_BM.all()
    for name in STREAMS:
        was, became = getattr(before, name)[0], getattr(after, name)[0]
        if name == changed:
            assert was @ became < SAME_COSINE
        else:
            np.testing.assert_array_equal(was, became)

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DecodeError, TransientError
from infra.settings import UploadSettings
from tests.clip_factories import RED, Subtitles, Video, clip_bytes
from workers.media_sources import load_media, open_media


def settings(root: Path, **values: Any) -> UploadSettings:
    return UploadSettings(media_roots=(str(root),), **values)


def assert_refused(uri: str, reason: str, with_settings: UploadSettings) -> None:
    with pytest.raises(DecodeError) as refusal:
        load_media(uri, with_settings)
    assert refusal.value.reason == reason


def test_local_clip_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip_bytes("mp4", Video(), Subtitles(cues=("Hello",))))
    media = load_media((tmp_path / "clip.mp4").as_uri(), settings(tmp_path), frame_size=32)
    assert media.frames is not None
    assert media.frames.shape == (5, 32, 32, 3)
    assert media.subtitles == "Hello"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "media_empty"), (b"not a film" * 10, "media_undecodable")],
    ids=["empty", "text"],
)
def test_reasons_of_bad_media_say_that_it_was_the_media(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    assert_refused(str(tmp_path / "bad.mp4"), reason, settings(tmp_path))


def test_limits_are_the_settings(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(clip_bytes("mp4", Video(colours=(RED,) * 40), Subtitles(cues=("a", "b", "c"))))
    uri = str(clip)
    assert_refused(uri, "media_too_many_bytes", settings(tmp_path, media_max_bytes=1000))
    assert_refused(uri, "media_too_many_pixels", settings(tmp_path, media_max_pixels=63 * 64))
    assert_refused(uri, "media_timeout", settings(tmp_path, media_timeout_s=1e-9))
    assert load_media(uri, settings(tmp_path, media_max_s=2.0)).subtitles == "a\nb"
    assert load_media(uri, settings(tmp_path, max_text_chars=1)).subtitles == "a"


def test_pipe_put_in_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "clip.mp4"
    os.mkfifo(pipe)
    monkeypatch.setattr("workers.media_sources.resolve_local", lambda uri, roots: pipe)
    assert_refused(str(pipe), "media_not_a_file", settings(tmp_path))


def test_link_put_in_place_of_a_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "clip.mp4"
    link.symlink_to("/etc/passwd")
    monkeypatch.setattr("workers.media_sources.resolve_local", lambda uri, roots: link)
    with (
        pytest.raises(TransientError, match="symbolic links"),
        open_media(str(link), settings(tmp_path)),
    ):
        pass

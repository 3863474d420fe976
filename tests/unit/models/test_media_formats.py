"""What real encoders put into real containers comes out as the same pictures, sound and words."""

from __future__ import annotations

import io
import os
from fractions import Fraction

import av
import numpy as np
import pytest

from infra.errors import DecodeError
from models.log_mel import SAMPLE_RATE
from models.media import Media, MediaLimits, decode_media
from models.subtitles import plain_text
from tests.clip_factories import (
    BLUE,
    FPS,
    GREEN,
    RED,
    Sound,
    Stream,
    Subtitles,
    Video,
    clip_bytes,
    video_and_sound,
)

VIDEO_IN = {
    "mp4": ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg4"),
    "matroska": ("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1", "mpeg4"),
    "webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
}
SOUND_IN = {
    "mp4": ("aac", "libopus", "libmp3lame", "ac3", "flac", "alac"),
    "matroska": ("aac", "vorbis", "libopus", "libmp3lame", "flac", "pcm_s16le"),
    "webm": ("vorbis", "libopus"),
}
SUBTITLES_IN = {"mp4": ("mov_text",), "matroska": ("subrip", "ass", "webvtt"), "webm": ("webvtt",)}
TOLERANCE = 40  # of a colour's 255, after chroma subsampling and a lossy codec


def decoded(container: str, *streams: Stream, limits: MediaLimits | None = None) -> Media:
    return decode_media(io.BytesIO(clip_bytes(container, *streams)), limits=limits or MediaLimits())


def loudest_hz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform))
    return float(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)[spectrum.argmax()])


def assert_colours(media: Media, colours: list[tuple[int, int, int]]) -> None:
    assert media.frames is not None
    np.testing.assert_allclose(media.frames[:, 112, 112], colours, atol=TOLERANCE)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="scheduling is Linux's")
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_clips_leave_the_priority_of_the_process_alone(codec: str) -> None:
    before = os.sched_getscheduler(0)
    decoded("matroska", Video(codec))
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize(
    ("container", "codec"), [(name, codec) for name in VIDEO_IN for codec in VIDEO_IN[name]]
)
def test_video_of_every_codec_is_seen(container: str, codec: str) -> None:
    video = Video(codec, colours=(RED,) * FPS + (BLUE,) * FPS)
    media = decoded(container, video, limits=MediaLimits(frames=8))
    assert_colours(media, [RED] * 4 + [BLUE] * 4)
    assert media.waveform is None
    assert media.subtitles == ""


@pytest.mark.parametrize(
    ("container", "codec"), [(name, codec) for name in SOUND_IN for codec in SOUND_IN[name]]
)
def test_sound_of_every_codec_is_heard(container: str, codec: str) -> None:
    media = decoded(container, Sound(codec, hz=1000.0))
    assert media.frames is None
    assert media.waveform is not None
    assert len(media.waveform) == pytest.approx(2 * SAMPLE_RATE, rel=0.05)
    assert loudest_hz(media.waveform) == pytest.approx(1000, abs=5)


@pytest.mark.parametrize(
    ("container", "codec"),
    [(name, codec) for name in SUBTITLES_IN for codec in SUBTITLES_IN[name]],
)
def test_subtitles_of_every_codec_are_read(container: str, codec: str) -> None:
    video = Video("libvpx" if container == "webm" else "libx264")
    media = decoded(container, video, Subtitles(codec, cues=("Hello there", "Goodbye")))
    assert media.subtitles == "Hello there\nGoodbye"
    assert_colours(media, [RED] * 5)


def test_same_video_with_other_pictures_sound_or_words_differs_in_that_alone() -> None:
    streams: dict[str, Stream] = {"video": Video(), "sound": Sound(), "words": Subtitles()}
    others: dict[str, Stream] = {
        "video": Video(colours=(BLUE,) * 20),
        "sound": Sound(hz=900.0),
        "words": Subtitles(cues=("Something", "else")),
    }
    before = decoded("mp4", *streams.values())
    for name, other in others.items():
        after = decoded("mp4", *(streams | {name: other}).values())
        same = {
            "video": np.array_equal(after.frames, before.frames),  # type: ignore[arg-type]
            "sound": np.array_equal(after.waveform, before.waveform),  # type: ignore[arg-type]
            "words": after.subtitles == before.subtitles,
        }
        assert same == {key: key != name for key in streams}


def test_frames_of_another_size_are_made_for_encoders_that_take_it() -> None:
    media = decode_media(io.BytesIO(video_and_sound()), frame_size=96)
    assert media.frames is not None
    assert media.frames.shape == (5, 96, 96, 3)


@pytest.mark.parametrize("key_frame_every", [1, 7, 33, 250])
@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9")]
)
def test_frames_are_the_same_wherever_the_key_frames_lie(
    container: str, codec: str, key_frame_every: int
) -> None:
    colours = [colour for colour in (RED, GREEN, BLUE, GREEN, RED) for _ in range(3 * FPS)]
    video = Video(codec, colours=colours, key_frame_every=key_frame_every)
    assert_colours(decoded(container, video), [RED, GREEN, BLUE, GREEN, RED])
    every_third = decoded(container, video, limits=MediaLimits(frames=50))
    assert_colours(every_third, [colours[3 * at + 2] for at in range(50)])


def test_variable_frame_rate_is_sampled_by_time() -> None:
    video = Video(colours=(RED, RED, GREEN, BLUE, BLUE), times_s=(0.0, 0.1, 0.2, 1.7, 2.0))
    # Targets in the middles of eighths of 2.x s; the first frame at or after each.
    media = decoded("matroska", video, limits=MediaLimits(frames=4))
    assert_colours(media, [BLUE] * 4)
    assert_colours(
        decoded("matroska", video, limits=MediaLimits(frames=16)), [RED] + [GREEN] + [BLUE] * 14
    )


def test_default_streams_are_taken_and_the_others_are_not() -> None:
    media = decoded(
        "matroska",
        Video(colours=(BLUE,) * 20, is_default=False),
        Video(colours=(RED,) * 20),
        Sound(hz=300.0, is_default=False),
        Sound(hz=2000.0),
    )
    assert_colours(media, [RED] * 5)
    assert media.waveform is not None
    assert loudest_hz(media.waveform) == pytest.approx(2000, abs=5)


def test_cover_picture_is_no_video() -> None:
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as output:
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = output.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        output.mux(cover.encode(av.VideoFrame(64, 64, "yuvj420p")))
        output.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, SAMPLE_RATE), np.float32), "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    media = decode_media(io.BytesIO(sink.getvalue()))
    assert media.frames is None
    assert media.waveform is not None


def test_video_in_a_codec_that_is_not_decoded_is_refused() -> None:
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        output.mux(stream.encode(av.VideoFrame(64, 64, "yuvj420p")))
        output.mux(stream.encode(None))
    with pytest.raises(DecodeError, match="mjpeg") as caught:
        decode_media(io.BytesIO(sink.getvalue()))
    assert caught.value.reason == "codec"


def test_subtitles_that_are_pictures_are_passed_over() -> None:
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as output:
        video = output.add_stream("mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        pictures = output.add_stream("dvdsub")
        for _ in range(FPS):
            output.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        output.mux(video.encode(None))
        packet = av.Packet(b"\0" * 64)
        packet.stream, packet.pts, packet.dts = pictures, 0, 0
        packet.time_base = Fraction(1, 1000)
        output.mux(packet)
    with av.open(io.BytesIO(sink.getvalue())) as container:
        assert len(container.streams.subtitles) == 1
    assert decode_media(io.BytesIO(sink.getvalue())).subtitles == ""


def test_subtitles_stop_at_the_limits_of_seconds_and_characters() -> None:
    cues = Subtitles(cues=("one", "two", "three", "four"))
    video = Video(colours=(RED,) * 40)
    assert decoded("mp4", video, cues, limits=MediaLimits(seconds_max=2)).subtitles == "one\ntwo"
    limits = MediaLimits(subtitle_chars_max=6)
    assert decoded("mp4", video, cues, limits=limits).subtitles == "one\ntw"


def test_cue_repeated_by_live_captions_is_kept_once() -> None:
    cues = Subtitles(cues=("and then", "and then", "it ended"))
    assert decoded("mp4", Video(colours=(RED,) * 30), cues).subtitles == "and then\nit ended"


@pytest.mark.parametrize(
    ("cue", "text"),
    [
        (r"{\an8\b1}Look{\b0}\Nup", "Look up"),
        ("<i>whisper</i> <font color='#fff'>x</font>", "whisper x"),
        ("<v Roger>Hi &amp; bye</v>", "Hi & bye"),
        ("2 < 3 and 5 > 4", "2 < 3 and 5 > 4"),
        ("  \t ", ""),
    ],
)
def test_plain_text_has_no_markup(cue: str, text: str) -> None:
    assert plain_text(cue) == text

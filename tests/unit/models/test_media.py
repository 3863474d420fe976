"""Real containers, whole and broken, become frames and sound or a named error."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest

from infra.errors import DecodeError, TransientError
from models.log_mel import SAMPLE_RATE
from models.media import MediaLimits, decode_media
from tests.clip_factories import BLUE, RED, Sound, Video, clip_bytes

CLIPS = Path(__file__).parents[3] / "streams" / "data" / "clips"
NASA, BUNNY = CLIPS / "nasa_13013.mp4", CLIPS / "bigbuckbunny.mp4"


class AppendOnly:
    """A sink that cannot seek back, so that the container never learns its duration."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


class EndlessFile(io.BytesIO):
    """A live recording whose clusters come again and again; there is no end to seek to."""

    def __init__(self) -> None:
        live = AppendOnly()
        make_video(live, "matroska", 10, Fraction(5))
        cluster_at = live.data.index(b"\x1f\x43\xb6\x75")
        super().__init__(live.data[:cluster_at])
        self._clusters = bytes(live.data[cluster_at:]) * 1000

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size) or self._clusters[:size]


class BreakingFile(io.BytesIO):
    """Its connection is lost after some reads."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 500_000:
            raise ConnectionResetError("connection reset")
        return super().read(size)


def picture_in_halves() -> np.ndarray:
    """Return a 64 x 64 picture, its left half red and its right half blue."""
    picture = np.empty((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = RED, BLUE
    return picture


def make_video(sink: io.BytesIO | AppendOnly, container: str, frames: int, fps: Fraction) -> None:
    """Write a silent video of red and blue halves."""
    with av.open(sink, "w", format=container) as output:
        stream = output.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(frames):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture_in_halves())))
        output.mux(stream.encode(None))


def video_bytes(container: str = "mp4", frames: int = 10, fps: Fraction = Fraction(5)) -> bytes:
    """Return a silent video of red and blue halves."""
    sink = io.BytesIO()
    make_video(sink, container, frames, fps)
    return sink.getvalue()


def sound_bytes(samples: np.ndarray) -> bytes:
    """Return a container with nothing but 16 kHz float samples."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as output:
        stream = output.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "flt", "mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return sink.getvalue()


def assert_decode_error(data: bytes, reason: str, limits: MediaLimits | None = None) -> None:
    assert_decode_error_of(io.BytesIO(data), reason, limits)


def assert_decode_error_of(file: BinaryIO, reason: str, limits: MediaLimits | None = None) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_media(file, limits=limits or MediaLimits())
    assert caught.value.reason == reason


def test_real_clip_gives_frames_and_all_of_its_sound() -> None:
    media = decode_media(NASA)
    assert media.frames is not None
    assert media.waveform is not None
    assert media.frames.shape == (5, 224, 224, 3)
    assert media.frames.dtype == np.uint8
    assert len(media.waveform) == pytest.approx(13.056 * SAMPLE_RATE, rel=0.01)
    assert 0.1 < np.abs(media.waveform).max() <= 1.0


def test_file_object_and_path_give_the_same() -> None:
    limits = MediaLimits(frames=2, seconds_max=1.0)
    from_path = decode_media(BUNNY, limits=limits)
    from_file = decode_media(io.BytesIO(BUNNY.read_bytes()), limits=limits)
    np.testing.assert_array_equal(from_path.frames, from_file.frames)
    np.testing.assert_array_equal(from_path.waveform, from_file.waveform)


def test_seconds_limit_takes_frames_and_sound_from_the_beginning_only() -> None:
    media = decode_media(NASA, limits=MediaLimits(seconds_max=2.0, frames=3))
    whole = decode_media(NASA)
    assert media.waveform is not None
    assert whole.waveform is not None
    assert media.frames is not None
    assert len(media.waveform) == 2 * SAMPLE_RATE
    np.testing.assert_array_equal(media.waveform, whole.waveform[: 2 * SAMPLE_RATE])
    assert len(media.frames) == 3


def test_frames_far_apart_are_those_of_decoding_everything() -> None:
    media = decode_media(NASA, limits=MediaLimits(frames=2))  # 6.5 s apart: it seeks
    with av.open(str(NASA)) as container:
        stream = container.streams.best("video")
        stream.codec_context.options = {"skip_loop_filter": "all"}
        every = list(container.decode(stream))
    assert media.frames is not None
    for picked, target in zip(media.frames, (13.056 / 4, 13.056 * 3 / 4), strict=True):
        expected = next(frame for frame in every if frame.time >= target)
        small = expected.reformat(224, 224, "rgb24", interpolation="AREA").to_ndarray()
        np.testing.assert_array_equal(picked, small)


def test_video_without_sound_has_no_waveform() -> None:
    media = decode_media(io.BytesIO(video_bytes()))
    assert media.frames is not None
    assert media.waveform is None


def test_sound_without_video_has_no_frames() -> None:
    tone = np.sin(np.arange(SAMPLE_RATE) / 10)
    media = decode_media(io.BytesIO(sound_bytes(tone)))
    assert media.frames is None
    assert media.waveform is not None
    np.testing.assert_allclose(media.waveform, tone, atol=1e-6)


def test_duration_that_the_container_does_not_say_is_measured() -> None:
    sink = AppendOnly()
    make_video(sink, "matroska", 10, Fraction(5))
    with av.open(io.BytesIO(sink.data)) as container:
        assert container.duration is None
    media = decode_media(io.BytesIO(sink.data))
    assert media.frames is not None
    assert len(media.frames) == 5


def test_single_picture_shown_for_long_fills_all_frames() -> None:
    media = decode_media(io.BytesIO(video_bytes(frames=1, fps=Fraction(1, 20))))
    assert media.frames is not None
    assert len(media.frames) == 5


@pytest.mark.parametrize(
    ("matrix", "rows"),
    [
        pytest.param((0, 1, -1, 0), (RED, BLUE), id="clockwise"),
        pytest.param((0, -1, 1, 0), (BLUE, RED), id="counterclockwise"),
    ],
)
def test_rotated_video_is_turned_upright(
    matrix: tuple[int, int, int, int], rows: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    def fixed_point(a: int, b: int, c: int, d: int) -> bytes:
        columns = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        return b"".join(column.to_bytes(4, "big", signed=True) for column in columns)

    data = video_bytes()
    header = data.index(b"tkhd")
    turned = data[:header] + data[header:].replace(fixed_point(1, 0, 0, 1), fixed_point(*matrix), 1)
    frames = decode_media(io.BytesIO(turned)).frames
    assert frames is not None
    np.testing.assert_allclose(frames[0, 20, 112], rows[0], atol=30)
    np.testing.assert_allclose(frames[0, 200, 112], rows[1], atol=30)


def test_text_named_mp4_is_undecodable(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_text("this is no video\n" * 100)
    with pytest.raises(DecodeError) as caught:
        decode_media(tmp_path / "video.mp4")
    assert caught.value.reason == "undecodable"


def test_file_of_no_bytes_is_empty() -> None:
    assert_decode_error(b"", "empty")


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04",
        b"<!doctype html>",
        b"\x1aE\xdf\xa3",
        b"\xff" * 64,
        b"\0" * 64,
    ],
    ids=["png", "zip", "html", "matroska magic", "ones", "zeros"],
)
def test_file_that_is_not_what_it_claims_is_undecodable(head: bytes) -> None:
    assert_decode_error(head + bytes(range(256)) * 20, "undecodable")


def test_container_of_subtitles_only_is_refused() -> None:
    sink = io.BytesIO()
    with av.open(str(NASA)) as clip, av.open(sink, "w", format="mp4") as output:
        subtitles = output.add_stream_from_template(clip.streams.subtitles[0])
        for packet in clip.demux(clip.streams.subtitles[0]):
            if packet.dts is not None:
                packet.stream = subtitles
                output.mux(packet)
    assert_decode_error(sink.getvalue(), "no_streams")


def test_playlist_is_undecodable_though_it_names_a_real_clip() -> None:
    assert_decode_error(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{BUNNY}\n#EXT-X-ENDLIST\n".encode(),
        "undecodable",
    )


def test_real_container_that_is_not_allowed_is_undecodable() -> None:
    assert_decode_error(video_bytes("avi"), "undecodable")


@pytest.mark.parametrize("size", [100, 200_000, 1_049_000])
def test_mp4_cut_before_its_index_ends_is_truncated(size: int) -> None:
    assert_decode_error(BUNNY.read_bytes()[:size], "truncated")


def test_mp4_whose_index_comes_first_is_truncated_where_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "index_first.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(100):
            picture = noise.integers(0, 255, (64, 64, 3), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        output.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert_decode_error(data[: len(data) // 2], "truncated")


def test_matroska_cut_early_is_truncated() -> None:
    data = video_bytes("matroska", frames=100, fps=Fraction(10))
    assert_decode_error(data[: len(data) // 4], "truncated")


def test_file_over_the_byte_limit_is_refused_while_reading() -> None:
    assert_decode_error(BUNNY.read_bytes(), "too_many_bytes", MediaLimits(bytes_max=300_000))


def test_frames_over_the_pixel_limit_are_refused() -> None:
    assert_decode_error(BUNNY.read_bytes(), "too_many_pixels", MediaLimits(pixels_max=640 * 480))


def test_frames_that_open_larger_than_the_header_says_are_refused() -> None:
    data = video_bytes("matroska")
    # PixelWidth and PixelHeight of the container, which the bit stream contradicts.
    small = data.replace(b"\xb0\x81\x40\xba\x81\x40", b"\xb0\x81\x10\xba\x81\x10")
    assert small != data
    assert_decode_error(small, "too_many_pixels", MediaLimits(pixels_max=32 * 32))


def test_tiny_file_of_huge_frames_is_refused_before_one_is_decoded() -> None:
    bomb = clip_bytes("matroska", Video(width=2048, height=2048, colours=(RED,)))
    assert len(bomb) < 5_000
    assert_decode_error(bomb, "too_many_pixels", MediaLimits(pixels_max=1024 * 1024))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("num_streams", [6, 7, 30])
def test_container_of_many_streams_is_refused(container: str, num_streams: int) -> None:
    data = clip_bytes(container, *[Video("mpeg4", colours=(RED,))] * num_streams)
    assert_decode_error(data, "too_many_streams", MediaLimits(streams_max=5))
    assert (
        decode_media(io.BytesIO(data), limits=MediaLimits(streams_max=num_streams)).frames
        is not None
    )


def test_duration_of_hours_that_the_file_does_not_have_is_truncated() -> None:
    data = clip_bytes("matroska", Video())
    at = data.index(b"\x44\x89\x88") + 3  # Duration, in milliseconds
    hours = data[:at] + struct.pack(">d", 36e6) + data[at + 8 :]
    with av.open(io.BytesIO(hours)) as container:
        assert container.duration == 36_000 * av.time_base
    assert_decode_error(hours, "truncated")


def test_stream_that_never_ends_is_refused_by_its_bytes() -> None:
    assert_decode_error_of(EndlessFile(), "too_many_bytes", MediaLimits(bytes_max=300_000))


def test_stream_that_never_ends_is_refused_by_the_time() -> None:
    limits = MediaLimits(timeout_s=0.2, bytes_max=1 << 40)
    assert_decode_error_of(EndlessFile(), "timeout", limits)


def test_time_that_is_up_is_noticed_between_frames() -> None:
    assert_decode_error(BUNNY.read_bytes(), "timeout", MediaLimits(timeout_s=0.0))


def test_source_that_breaks_off_may_come_back() -> None:
    with pytest.raises(TransientError, match="connection reset"):
        decode_media(BreakingFile(BUNNY.read_bytes()))


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_sound_of_every_layout_is_mixed_to_one(layout: str) -> None:
    waveform = decode_media(io.BytesIO(clip_bytes("mp4", Sound(layout=layout)))).waveform
    assert waveform is not None
    assert waveform.ndim == 1


def test_sound_of_an_absurd_rate_is_refused() -> None:
    data = clip_bytes("matroska", Sound("pcm_s16le", rate=400, seconds=1.0))
    assert_decode_error(data, "odd_sound")


def test_sound_with_infinite_samples_is_refused() -> None:
    assert_decode_error(sound_bytes(np.full(SAMPLE_RATE, np.inf)), "not_finite")


def test_missing_path_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"gone\.mp4"):
        decode_media(tmp_path / "gone.mp4")

"""Small real clips, made by FFmpeg's encoders when a test asks for them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.subtitles.subtitle import SubtitleSet

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
FPS = 10
SAMPLE_RATE = 48_000
# What the encoders of text subtitles want to be told of styles.
ASS_HEADER = (
    b"[Script Info]\r\nScriptType: v4.00+\r\n\r\n[V4+ Styles]\r\nFormat: Name, Fontname\r\n"
    b"Style: Default,Arial\r\n\r\n[Events]\r\n"
    b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\r\n"
)


@dataclass(frozen=True)
class Video:
    """A stream of single-coloured pictures; a picture's time is its place in `times_s`, or one after the other."""

    codec: str = "libx264"
    colours: Sequence[tuple[int, int, int]] = (RED,) * 2 * FPS
    width: int = 64
    height: int = 64
    times_s: Sequence[float] | None = None
    key_frame_every: int = 250
    is_default: bool = True


@dataclass(frozen=True)
class Sound:
    """A sine of some loudness."""

    codec: str = "aac"
    hz: float = 440.0
    seconds: float = 2.0
    layout: str = "stereo"
    rate: int = SAMPLE_RATE
    is_default: bool = True


@dataclass(frozen=True)
class Subtitles:
    """Cues, a second each from the beginning."""

    codec: str = "mov_text"
    cues: Sequence[str] = ("Hello there", "Goodbye")


Stream = Video | Sound | Subtitles


def clip_bytes(container: str, *streams: Stream) -> bytes:
    """Return a container with these streams."""
    sink = io.BytesIO()
    with _scheduling_kept(), av.open(sink, "w", format=container) as output:
        added = [(wanted, _add(output, wanted)) for wanted in streams]
        packets = [packet for wanted, stream in added for packet in _encoded(wanted, stream)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return sink.getvalue()


@contextmanager
def _scheduling_kept() -> Iterator[None]:
    """Give the thread back as it was.

    Run by root, SVT-AV1 leaves the thread that called it at real-time priority, and with it every process that this
    one starts from then on: two busy ones keep all others from two cores.
    """
    if not hasattr(os, "sched_getscheduler"):  # not Linux
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def video_and_sound(container: str = "mp4", video: str = "libx264", sound: str = "aac") -> bytes:
    """Return two seconds of red and a tone."""
    return clip_bytes(container, Video(video), Sound(sound))


def _add(output: Any, wanted: Stream) -> Any:
    if isinstance(wanted, Subtitles):
        stream = output.add_stream(wanted.codec)
        stream.codec_context.subtitle_header = ASS_HEADER
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        return stream
    if isinstance(wanted, Sound):
        stream = output.add_stream(wanted.codec, rate=wanted.rate, layout=wanted.layout)
        stream.codec_context.options = {"strict": "experimental"}  # FFmpeg's own Vorbis
    else:
        quiet = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "12"}}
        stream = output.add_stream(wanted.codec, rate=FPS, options=quiet.get(wanted.codec, {}))
        stream.width, stream.height, stream.pix_fmt = wanted.width, wanted.height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = wanted.key_frame_every
    stream.disposition = (
        av.stream.Disposition.default if wanted.is_default else av.stream.Disposition(0)
    )
    return stream


def _encoded(wanted: Stream, stream: Any) -> list[Any]:
    if isinstance(wanted, Subtitles):
        return [_cue(stream, at, text) for at, text in enumerate(wanted.cues)]
    frames = _tone(wanted, stream) if isinstance(wanted, Sound) else _pictures(wanted)
    packets = [packet for frame in frames for packet in stream.encode(frame)]
    return [packet for packet in (*packets, *stream.encode(None)) if packet.dts is not None]


def _pictures(wanted: Video) -> list[Any]:
    frames = []
    for at, colour in enumerate(wanted.colours):
        picture = np.full((wanted.height, wanted.width, 3), colour, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
        time_s = at / FPS if wanted.times_s is None else wanted.times_s[at]
        frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
        frames.append(frame)
    return frames


def _tone(wanted: Sound, stream: Any) -> list[Any]:
    context = stream.codec_context
    context.open(strict=False)
    times = np.arange(round(wanted.seconds * wanted.rate)) / wanted.rate
    wave = (0.5 * np.sin(2 * np.pi * wanted.hz * times)).astype(np.float32)
    channels = context.layout.nb_channels
    whole = av.AudioFrame.from_ndarray(np.tile(wave, (channels, 1)), "fltp", wanted.layout)
    whole.sample_rate, whole.pts, whole.time_base = wanted.rate, 0, Fraction(1, wanted.rate)
    resampler = av.AudioResampler(
        context.format, context.layout, wanted.rate, frame_size=context.frame_size or 1024
    )
    return [part for source in (whole, None) for part in resampler.resample(source)]


def _cue(stream: Any, at: int, text: str) -> Any:
    event = f"{at},0,Default,,0,0,0,,{text}".encode()
    cue = SubtitleSet.create(text=event, start=0, end=1000, pts=at * 1000)
    packet = stream.codec_context.encode_subtitle(cue)
    packet.stream, packet.time_base = stream, Fraction(1, 1000)
    packet.pts = packet.dts = at * 1000
    packet.duration = 1000
    return packet

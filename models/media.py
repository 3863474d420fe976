"""Decodes a container into what the encoders see and hear: a few frames and a mono waveform.

Knows nothing of encoders and of where the bytes come from. FFmpeg gets a file object and two demuxers:
a playlist dressed up as an .mp4 cannot make it open other files or addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from infra.errors import DecodeError, TransientError
from models.encoders import FRAME_SIZE
from models.log_mel import SAMPLE_RATE

CONTAINERS = "mov,mp4,matroska,webm"
# Decoding this far is as quick as seeking, which starts at the key frame before the target.
_SEEK_BEYOND_S = 2.0


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What one file may cost.

    Attributes:
        bytes_max: bytes read, counted again where sound and frames are read in turn.
        seconds_max: frames and sound are taken from this much of the beginning.
        pixels_max: pixels of one frame; the default is 4096 x 2304.
        frames: frames sampled, at even distances.
    """

    bytes_max: int = 200_000_000
    seconds_max: float = 60.0
    pixels_max: int = 4096 * 2304
    frames: int = 8


@dataclass(frozen=True)
class Media:
    """What was decoded; None where the file has no such stream.

    Shapes: frames uint8 [F, 224, 224, 3] RGB, upright; waveform float32 [S] at 16 kHz mono.
    """

    frames: npt.NDArray[np.uint8] | None
    waveform: npt.NDArray[np.float32] | None


DEFAULT_LIMITS = MediaLimits()


def decode_media(source: Path | BinaryIO, *, limits: MediaLimits = DEFAULT_LIMITS) -> Media:
    """Return sampled frames and the sound of a video's first seconds.

    Shapes: see Media.

    Raises:
        DecodeError: `reason` is undecodable, no_streams, truncated, too_many_bytes, too_many_pixels
            or not_finite.
        TransientError: the path cannot be opened now.
    """
    if not isinstance(source, Path):
        return _decode(source, limits)
    try:
        file = source.open("rb")
    except OSError as error:
        raise TransientError(f"cannot open {source}: {error.strerror}") from error
    with file:
        return _decode(file, limits)


def _decode(file: BinaryIO, limits: MediaLimits) -> Media:
    reader = _LimitedReader(file, limits.bytes_max)
    try:
        duration_s = _duration_s(reader, limits)
        frames, seen_s = _sample_frames(reader, duration_s, limits)
        waveform = _decode_sound(reader, limits)
    except (av.FFmpegError, ValueError) as error:  # the resampler reports odd frames by ValueError
        reader.check()
        raise DecodeError(f"media cannot be decoded: {error}", "undecodable") from error
    reader.check()
    if frames is None and waveform is None:
        raise DecodeError("media has neither a video nor a sound stream", "no_streams")
    heard_s = 0.0 if waveform is None else len(waveform) / SAMPLE_RATE
    if max(seen_s, heard_s) < duration_s / 2:
        raise DecodeError(
            f"media ends after {max(seen_s, heard_s):.1f} of {duration_s:.1f} s", "truncated"
        )
    return Media(frames, waveform)


class _LimitedReader:
    """A file that seems to end once too much was read; `check` then says so.

    FFmpeg swallows exceptions of its reader, and tries again.
    """

    def __init__(self, file: BinaryIO, bytes_max: int) -> None:
        self._file = file
        self._bytes_max = bytes_max
        self._bytes_read = 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if self._bytes_read > self._bytes_max:
            return b""
        data = self._file.read(size)
        self._bytes_read += len(data)
        return data

    def check(self) -> None:
        if self._bytes_read > self._bytes_max:
            raise DecodeError(
                f"decoding took more than {self._bytes_max} bytes of media", "too_many_bytes"
            )


@contextmanager
def _open(reader: _LimitedReader) -> Iterator[Any]:
    reader.seek(0)
    with av.open(reader, options={"format_whitelist": CONTAINERS}) as container:
        yield container


def _duration_s(reader: _LimitedReader, limits: MediaLimits) -> float:
    """Return how many seconds there are to decode; recordings cut off live do not say, so count."""
    with _open(reader) as container:
        if container.duration:
            return min(container.duration / av.time_base, limits.seconds_max)
        earliest_s, latest_s = float("inf"), float("-inf")
        for packet in container.demux():
            if packet.pts is None:
                continue
            earliest_s = min(earliest_s, float(packet.pts * packet.time_base))
            latest_s = max(latest_s, float((packet.pts + packet.duration) * packet.time_base))
            if latest_s - earliest_s >= limits.seconds_max:
                return limits.seconds_max
        return max(0.0, latest_s - earliest_s)


def _best_stream(container: Any, kind: str) -> Any:
    """Return the stream a player would choose, or None; a cover picture is no video."""
    stream = container.streams.best(kind)
    if stream is None or stream.codec_context is None:
        return None
    return None if stream.disposition & av.stream.Disposition.attached_pic else stream


def _sample_frames(
    reader: _LimitedReader, duration_s: float, limits: MediaLimits
) -> tuple[npt.NDArray[np.uint8] | None, float]:
    """Return frames from the middles of equal parts, and until when the last one is shown."""
    with _open(reader) as container:
        stream = _best_stream(container, "video")
        if stream is None:
            return None, 0.0
        size = stream.codec_context.width, stream.codec_context.height
        if size[0] * size[1] > limits.pixels_max:
            raise DecodeError(
                f"frames have {size} pixels, at most {limits.pixels_max} in all are decoded",
                "too_many_pixels",
            )
        # Later frames may be larger than the header says: the decoder itself refuses those.
        stream.codec_context.options = {"max_pixels": str(limits.pixels_max)}
        start_s = float((stream.start_time or 0) * stream.time_base)
        parts = np.arange(limits.frames) + 0.5
        targets = (start_s + duration_s * parts / limits.frames).tolist()
        frames = list(_frames_at(container, stream, targets))
        if not frames:
            return None, 0.0
        last = frames[-1]
        seen_s = last.time - start_s + float((last.duration or 0) * last.time_base)
        return np.stack([_upright_rgb(frame) for frame in frames]), seen_s


def _frames_at(container: Any, stream: Any, targets: list[float]) -> Iterator[Any]:
    """Yield the first frame at or after each time; the last frame stays until the end.

    A seek that goes back (far apart key frames, or no index) is the last one: from there on every frame
    is decoded once.
    """
    decoded = _timed(container.decode(stream))
    frame: Any = next(decoded, None)
    seek_pays = True
    for target in targets:
        if frame is None:
            return
        if seek_pays and target - frame.time > _SEEK_BEYOND_S:
            before = frame.time
            container.seek(int(target / stream.time_base), stream=stream)
            decoded = _timed(container.decode(stream))
            frame = next(decoded, frame)
            seek_pays = frame.time > before
        while frame.time < target:
            following = next(decoded, None)
            if following is None:
                break
            frame = following
        yield frame


def _timed(frames: Iterator[Any]) -> Iterator[Any]:
    return (frame for frame in frames if frame.pts is not None)


def _upright_rgb(frame: Any) -> npt.NDArray[np.uint8]:
    small = frame.reformat(FRAME_SIZE, FRAME_SIZE, "rgb24", interpolation="AREA").to_ndarray()
    return np.rot90(small, k=round(frame.rotation / 90))


def _decode_sound(reader: _LimitedReader, limits: MediaLimits) -> npt.NDArray[np.float32] | None:
    """Return the best sound stream's first seconds, mixed down and resampled."""
    missing = wanted = int(limits.seconds_max * SAMPLE_RATE)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    parts: list[npt.NDArray[np.float32]] = []
    with _open(reader) as container:
        stream = _best_stream(container, "audio")
        if stream is None:
            return None
        for frame in chain(container.decode(stream), (None,)):  # None flushes the resampler
            for resampled in resampler.resample(frame):
                parts.append(resampled.to_ndarray()[0])
                missing -= len(parts[-1])
            if missing <= 0:
                break
    if not parts:
        return None
    waveform = np.concatenate(parts)[:wanted]
    if not np.isfinite(waveform).all():
        raise DecodeError("sound has samples that are not finite numbers", "not_finite")
    return waveform

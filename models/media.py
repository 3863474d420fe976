"""Decodes a container into what the encoders see, hear and read: a few frames, a mono waveform, subtitles.

Knows nothing of encoders and of where the bytes come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import SEEK_END
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from infra.errors import DecodeError, TransientError
from models import mp4_boxes
from models.log_mel import SAMPLE_RATE
from models.media_limits import (
    DEFAULT_LIMITS,
    LimitedReader,
    MediaLimits,
    best_stream,
    opened,
    too_many_streams,
)
from models.subtitles import read_subtitles

__all__ = ["Media", "MediaLimits", "decode_media"]

# Less than this share of what the container announces is a file that was cut off. The rest is slack for a last
# picture or sound without a duration of its own, and for subtitles that outlast both.
_WHOLE_SHARE = 0.8
_SAMPLE_RATES = range(1_000, 384_001)
_CHANNELS_MAX = 24  # 22.2 is the largest layout there is


@dataclass(frozen=True)
class Media:
    """What was decoded; None, or "", where the file has no such stream.

    Shapes: frames uint8 [F, frame_size, frame_size, 3] RGB, upright; waveform float32 [S] at 16 kHz mono.
    """

    frames: npt.NDArray[np.uint8] | None
    waveform: npt.NDArray[np.float32] | None
    subtitles: str = ""


def decode_media(
    source: Path | BinaryIO, *, limits: MediaLimits = DEFAULT_LIMITS, frame_size: int = 224
) -> Media:
    """Return sampled frames, the sound and the subtitles of a video's first seconds.

    Shapes: see Media.

    Raises:
        DecodeError: `reason` is empty, undecodable, truncated, no_streams, codec, odd_sound, not_finite, timeout,
            too_many_bytes, too_many_pixels, too_many_streams or too_much_memory.
        TransientError: the source cannot be opened, or broke off while it was read.
    """
    if not isinstance(source, Path):
        return _decode(source, limits, frame_size)
    try:
        file = source.open("rb")
    except OSError as error:
        raise TransientError(f"cannot open {source}: {error.strerror}") from error
    with file:
        return _decode(file, limits, frame_size)


def _decode(file: BinaryIO, limits: MediaLimits, frame_size: int) -> Media:
    reader = LimitedReader(file, limits)
    try:
        with opened(reader) as container:
            kinds = {stream.type for stream in container.streams}
            duration_s = _declared_s(container, limits)
            if duration_s is not None:
                frames, seen_s = _sample_frames(reader, container, duration_s, frame_size)
        if duration_s is None:
            duration_s = _counted_s(reader)
            with opened(reader) as container:
                frames, seen_s = _sample_frames(reader, container, duration_s, frame_size)
        waveform = _decode_sound(reader) if "audio" in kinds else None
        # Whatever is short so far may be so for want of bytes or time.
        reader.check()
        subtitles = read_subtitles(reader) if "subtitle" in kinds else ""
    except (av.FFmpegError, MemoryError) as error:
        reader.check()
        raise _refusal(file, error, limits) from error
    reader.check()
    if frames is None and waveform is None:
        raise DecodeError("media has neither a video nor a sound stream", "no_streams")
    heard_s = 0.0 if waveform is None else len(waveform) / SAMPLE_RATE
    if max(seen_s, heard_s) < duration_s * _WHOLE_SHARE:
        raise DecodeError(
            f"media ends after {max(seen_s, heard_s):.1f} of {duration_s:.1f} s", "truncated"
        )
    return Media(frames, waveform, subtitles)


def _refusal(
    file: BinaryIO, error: av.FFmpegError | MemoryError, limits: MediaLimits
) -> DecodeError:
    """Return what is wrong with a file that FFmpeg gave up on."""
    try:
        if isinstance(error, MemoryError):  # which FFmpeg also says of a stream too many
            if mp4_boxes.num_tracks(file) > limits.streams_max:
                return too_many_streams(limits)
            return DecodeError("media need more memory than there is", "too_much_memory")
        if file.seek(0, SEEK_END) == 0:
            return DecodeError("media have no bytes at all", "empty")
        if mp4_boxes.is_cut(file):
            return DecodeError("media end within a box, or before their index", "truncated")
    except OSError as broken:
        raise TransientError(f"reading media broke off: {broken}") from broken
    return DecodeError(f"media cannot be decoded: {error}", "undecodable")


def _declared_s(container: Any, limits: MediaLimits) -> float | None:
    """Return how many seconds there are to decode, or None where the container does not say."""
    if container.duration and container.duration > 0:
        return float(min(container.duration / av.time_base, limits.seconds_max))
    return None


def _counted_s(reader: LimitedReader) -> float:
    """Return how many seconds of packets there are to decode: recordings cut off live do not say."""
    seconds_max = reader.limits.seconds_max
    with opened(reader) as container:
        earliest_s, latest_s = float("inf"), float("-inf")
        for packet in container.demux():
            reader.check()
            if packet.pts is None:
                continue
            earliest_s = min(earliest_s, float(packet.pts * packet.time_base))
            latest_s = max(latest_s, float((packet.pts + packet.duration) * packet.time_base))
            if latest_s - earliest_s >= seconds_max:
                return seconds_max
        return max(0.0, latest_s - earliest_s)


def _sample_frames(
    reader: LimitedReader, container: Any, duration_s: float, frame_size: int
) -> tuple[npt.NDArray[np.uint8] | None, float]:
    """Return frames from the middles of equal parts, and until when the last one is shown."""
    limits = reader.limits
    stream = best_stream(container, "video")
    if stream is None:
        return None, 0.0
    size = stream.codec_context.width, stream.codec_context.height
    if size[0] * size[1] > limits.pixels_max:
        raise _too_many_pixels(limits, f"{size[0]} x {size[1]}")
    # Later frames may be larger than the header says: the decoder itself refuses those. The loop filter smooths the
    # edges of blocks, a fifth of the work, of which little is left in a picture made small.
    stream.codec_context.options = {
        "max_pixels": str(limits.pixels_max),
        "skip_loop_filter": "all",
    }
    start_s = float((stream.start_time or 0) * stream.time_base)
    parts = np.arange(limits.frames) + 0.5
    targets = (start_s + duration_s * parts / limits.frames).tolist()
    # Each is made small before the next is decoded: five large ones at once would be much memory.
    small: list[npt.NDArray[np.uint8]] = []
    seen_s = 0.0
    try:
        for frame in _frames_at(reader, container, stream, targets):
            small.append(_upright_rgb(frame, frame_size))
            seen_s = frame.time - start_s + float((frame.duration or 0) * frame.time_base)
    except av.ArgumentError as error:  # all that the decoder says of a picture's size
        raise _too_many_pixels(limits, "a size that the decoder refuses") from error
    return (np.stack(small) if small else None), seen_s


def _too_many_pixels(limits: MediaLimits, size: str) -> DecodeError:
    return DecodeError(
        f"frames have {size}, at most {limits.pixels_max} pixels in all are decoded",
        "too_many_pixels",
    )


def _frames_at(
    reader: LimitedReader, container: Any, stream: Any, targets: list[float]
) -> Iterator[Any]:
    """Yield the first frame at or after each time; the last frame stays until the end.

    Frames between are decoded, for the next ones are drawn on them, unless the container's index has a key frame to go
    on from. Where it has no index, every frame is decoded once.
    """
    container.seek(0, stream=stream)  # Matroska reads its index no sooner
    decoded = _timed(reader, container.decode(stream))
    frame: Any = next(decoded, None)
    for target in targets:
        if frame is None:
            return
        if _has_key_frame(stream, after=frame, until=target):
            container.seek(int(target / stream.time_base), stream=stream)
            decoded = _timed(reader, container.decode(stream))
            frame = next(decoded, frame)
        while frame.time < target:
            following = next(decoded, None)
            if following is None:
                break
            frame = following
        yield frame


def _has_key_frame(stream: Any, *, after: Any, until: float) -> bool:
    entries = stream.index_entries
    at = entries.search_timestamp(int(until / stream.time_base))
    return at >= 0 and entries[at].timestamp > after.pts


def _timed(reader: LimitedReader, frames: Iterator[Any]) -> Iterator[Any]:
    for frame in frames:
        reader.check()
        if frame.pts is not None:
            yield frame


def _upright_rgb(frame: Any, size: int) -> npt.NDArray[np.uint8]:
    small = frame.reformat(size, size, "rgb24", interpolation="AREA").to_ndarray()
    return np.rot90(small, k=round(frame.rotation / 90))


def _decode_sound(reader: LimitedReader) -> npt.NDArray[np.float32] | None:
    """Return the best sound stream's first seconds, mixed down and resampled."""
    missing = wanted = int(reader.limits.seconds_max * SAMPLE_RATE)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    parts: list[npt.NDArray[np.float32]] = []
    with opened(reader) as container:
        stream = best_stream(container, "audio")
        if stream is None:
            return None
        for frame in chain(container.decode(stream), (None,)):  # None flushes the resampler
            reader.check()
            _check_sound(frame)
            for part in _resampled(resampler, frame):
                parts.append(part)
                missing -= len(part)
            if missing <= 0:
                break
    if missing == wanted:
        return None
    waveform = np.concatenate(parts)[:wanted]
    if not np.isfinite(waveform).all():
        raise DecodeError("sound has samples that are not finite numbers", "not_finite")
    return waveform


def _resampled(resampler: av.AudioResampler, frame: Any) -> list[npt.NDArray[np.float32]]:
    try:
        return [
            np.frombuffer(resampled.planes[0], np.float32, resampled.samples)
            for resampled in resampler.resample(frame)
        ]
    except ValueError as error:
        raise DecodeError(
            f"sound changes its rate or layout midway: {error}", "odd_sound"
        ) from error


def _check_sound(frame: Any) -> None:
    """Refuse a rate that would make few bytes into much sound, or a layout that nothing plays."""
    if frame is None:
        return
    rate, channels = frame.sample_rate, frame.layout.nb_channels
    if rate not in _SAMPLE_RATES or not 1 <= channels <= _CHANNELS_MAX:
        raise DecodeError(
            f"sound has {rate} samples/s in {channels} channels, expected {_SAMPLE_RATES} and at "
            f"most {_CHANNELS_MAX}",
            "odd_sound",
        )

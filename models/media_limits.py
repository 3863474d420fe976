"""What one media file may cost, and a container that is opened within it; knows nothing of frames, sound and text.

FFmpeg gets a file object, two demuxers, a list of decoders and no protocol: a playlist dressed up as an .mp4 cannot
make it open other files or addresses, and a rare codec's decoder is never reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av

from infra.clock import Deadline
from infra.errors import DecodeError, FreshetError, TransientError

CONTAINERS = "mov,mp4,matroska,webm"
# Codecs by name, then FFmpeg's decoders of them where those are called otherwise.
VIDEO_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")
AUDIO_CODECS = (
    "aac", "vorbis", "opus", "mp3", "flac", "alac", "ac3", "eac3",
    "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le",
)  # fmt: skip
SUBTITLE_CODECS = ("mov_text", "subrip", "webvtt", "ass", "text")
_DECODERS = ("libdav1d", "libvpx", "libvpx-vp9", "mp3float", "libopus", "ssa", "srt")
_CODECS = {"video": VIDEO_CODECS, "audio": AUDIO_CODECS, "subtitle": SUBTITLE_CODECS}


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What one file may cost.

    Attributes:
        bytes_max: bytes read, counted again where sound, frames and subtitles are read in turn.
        seconds_max: frames, sound and subtitles are taken from this much of the beginning.
        pixels_max: pixels of one frame; the default is 4096 x 2304.
        timeout_s: seconds that reading and decoding may take.
        streams_max: streams in the container, attached fonts and pictures among them.
        subtitle_chars_max: characters of the transcript that subtitles make.
        frames: frames sampled, at even distances; five, as OneRec's tokenizer sees (technical report, 2506.13695).
    """

    bytes_max: int = 200_000_000
    seconds_max: float = 60.0
    pixels_max: int = 4096 * 2304
    timeout_s: float = 30.0
    streams_max: int = 100
    subtitle_chars_max: int = 20_000
    frames: int = 5


DEFAULT_LIMITS = MediaLimits()


class LimitedReader:
    """A file that seems to end once it cost too much; `check` then says why.

    FFmpeg swallows exceptions of its reader, and tries again.
    """

    def __init__(self, file: BinaryIO, limits: MediaLimits) -> None:
        self.limits = limits
        self._file = file
        self._deadline = Deadline(limits.timeout_s)
        self._bytes_read = 0
        self._failure: FreshetError | OSError | None = None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end or once a limit is passed."""
        if self._failure or self._bytes_read > self.limits.bytes_max or self._deadline.expired():
            return b""
        try:
            data = self._file.read(size)
        except (FreshetError, OSError) as error:
            self._failure = error
            return b""
        self._bytes_read += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as in any file, or stay where that fails."""
        try:
            return self._file.seek(offset, whence)
        except (FreshetError, OSError) as error:
            self._failure = error
            return self._file.tell()

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def check(self) -> None:
        """Raise what was passed or what failed; asked between packets and frames too.

        Raises:
            DecodeError: with reason `timeout` or `too_many_bytes`.
            TransientError: reading broke off.
        """
        if self._deadline.expired():
            raise DecodeError(
                f"media took longer than {self.limits.timeout_s} s to read and decode", "timeout"
            )
        if self._bytes_read > self.limits.bytes_max:
            raise DecodeError(
                f"decoding took more than {self.limits.bytes_max} bytes of media", "too_many_bytes"
            )
        if isinstance(self._failure, OSError):
            raise TransientError(f"reading media broke off: {self._failure}") from self._failure
        if self._failure:
            raise self._failure


@contextmanager
def opened(reader: LimitedReader) -> Iterator[Any]:
    """Open the container from its beginning.

    Raises:
        DecodeError: with reason `too_many_streams`.
        av.FFmpegError: it is none of the containers, or broken.
    """
    limits = reader.limits
    options = {
        "format_whitelist": CONTAINERS,
        "codec_whitelist": ",".join((*VIDEO_CODECS, *AUDIO_CODECS, *SUBTITLE_CODECS, *_DECODERS)),
        "protocol_whitelist": "none",
        "max_pixels": str(limits.pixels_max),  # opening decodes a first frame too
        "max_streams": str(limits.streams_max + 1),
    }
    reader.seek(0)
    with av.open(reader, options=options) as container:
        if len(container.streams) > limits.streams_max:
            raise too_many_streams(limits)
        yield container


def too_many_streams(limits: MediaLimits) -> DecodeError:
    """Return the refusal of a container with more streams than the limit."""
    return DecodeError(f"media have more than {limits.streams_max} streams", "too_many_streams")


def best_stream(container: Any, kind: str) -> Any:
    """Return the stream of a kind that a player would choose, or None; a cover picture is no video.

    Packets of all other streams are discarded from now on.

    Raises:
        DecodeError: with reason `codec`: there are streams of the kind, but none in a codec that is decoded.
    """
    streams = [
        stream
        for stream in container.streams
        if stream.type == kind and not stream.disposition & av.stream.Disposition.attached_pic
    ]
    usable = [stream for stream in streams if _codec(stream) in _CODECS[kind]]
    if not usable:
        if streams and kind != "subtitle":
            raise DecodeError(
                f"{kind} is in {_codec(streams[0])}, expected one of {', '.join(_CODECS[kind])}",
                "codec",
            )
        return None
    favourite = container.streams.best(kind)
    best = favourite if favourite in usable else max(usable, key=_rank)
    for stream in container.streams:
        if stream is not best:
            stream.discard = av.stream.Discard.all
    return best


def _codec(stream: Any) -> str:
    context = stream.codec_context
    return "an unknown codec" if context is None else str(context.codec.canonical_name)


def _rank(stream: Any) -> tuple[bool, int]:
    """Return what makes a stream better than another: the default one, then the larger picture."""
    is_default = bool(stream.disposition & av.stream.Disposition.default)
    return is_default, getattr(stream.codec_context, "width", 0) or 0

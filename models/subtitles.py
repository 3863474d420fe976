"""The words in a container's subtitles, as one plain text; knows nothing of pictures and sound.

Subtitles that are pictures (DVD, Blu-ray, DVB) have no words here, and are passed over.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import av

from models.media_limits import LimitedReader, best_stream, opened

# An ASS event as FFmpeg's decoders write it: read order, layer, style, name, three margins, effect, text.
_FIELDS_BEFORE_TEXT = 8
_OVERRIDES = re.compile(r"\{[^}]*\}")
_TAGS = re.compile(r"</?[a-zA-Z][^<>]*>")
_BREAKS = re.compile(r"\\[Nnh]")


def read_subtitles(reader: LimitedReader) -> str:
    """Return the text of the best subtitle stream, a line per cue, or "" where there is none.

    Cues that repeat the one before, as live captions do, are kept once.

    Raises:
        DecodeError: a limit was passed.
        av.FFmpegError: the container is broken.
    """
    limits = reader.limits
    lines: list[str] = []
    num_chars = 0
    with opened(reader) as container:
        stream = best_stream(container, "subtitle")
        if stream is None:
            return ""
        start_s = (container.start_time or 0) / av.time_base
        for packet in container.demux(stream):
            reader.check()
            if packet.pts is None or not packet.size:
                continue
            if float(packet.pts * packet.time_base) - start_s >= limits.seconds_max:
                break
            for line in _lines(packet):
                if lines and lines[-1] == line:
                    continue
                lines.append(line)
                num_chars += len(line) + 1
            if num_chars > limits.subtitle_chars_max:
                break
    return "\n".join(lines)[: limits.subtitle_chars_max]


def _lines(packet: Any) -> Iterator[str]:
    """Yield a packet's cues; one that is not in UTF-8 or broken is passed over, as players do."""
    try:
        cues = packet.decode()
    except av.FFmpegError:
        return
    for cue in cues:
        event = getattr(cue, "ass", b"").decode("utf-8", "replace")
        line = plain_text(event.split(",", _FIELDS_BEFORE_TEXT)[-1])
        if line:
            yield line


def plain_text(cue: str) -> str:
    """Return a cue's words without ASS overrides, tags and entities, on one line."""
    without_tags = _TAGS.sub("", _OVERRIDES.sub("", _BREAKS.sub(" ", cue)))
    return " ".join(html.unescape(without_tags).split())

"""Opens media where the roots allow it, and decodes them within the limits of the settings, in this process.

Knows nothing of uploads, of other processes and of retries.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from infra.clock import Deadline
from infra.errors import DecodeError, TransientError
from infra.settings import UploadSettings
from models.media import Media, MediaLimits, decode_media
from workers.media_roots import is_local, resolve_local, resolve_remote


def load_media(uri: str, settings: UploadSettings, *, frame_size: int = 224) -> Media:
    """Return what was decoded of an allowed URI.

    Blocks: while media are read and decoded, about `media_timeout_s` at most; only a call into FFmpeg or the kernel
    that does not return can take longer.

    Raises:
        DecodeError: the URI is not allowed, or the media are bad or pass a limit; `reason` starts with `media_`.
        TransientError: the media cannot be read now.
    """
    deadline = Deadline(settings.media_timeout_s)
    try:
        with open_media(uri, settings) as file:
            limits = MediaLimits(
                bytes_max=settings.media_max_bytes,
                seconds_max=settings.media_max_s,
                pixels_max=settings.media_max_pixels,
                subtitle_chars_max=settings.max_text_chars,
                timeout_s=deadline.remaining_s(),
            )
            return decode_media(file, limits=limits, frame_size=frame_size)
    except DecodeError as error:
        reason = error.reason if error.reason.startswith("media_") else f"media_{error.reason}"
        raise DecodeError(str(error), reason) from error
    except TransientError as error:
        if deadline.expired():  # it would take as long the next time
            raise DecodeError(
                f"{error}; that took longer than {settings.media_timeout_s} s", "media_timeout"
            ) from error
        raise


@contextmanager
def open_media(uri: str, settings: UploadSettings) -> Iterator[BinaryIO]:
    """Open an allowed URI for reading and seeking.

    Blocks: until the source answers; where a server has no ranges, until everything is downloaded.

    Raises:
        DecodeError: the URI is not allowed, or its server says that it will not give the file.
        TransientError: the media cannot be read now.
    """
    if is_local(uri):
        with _open_local(resolve_local(uri, settings.media_roots), uri) as file:
            yield file
        return
    scheme = resolve_remote(uri, settings.media_roots)
    from workers.remote_media import open_http, open_s3  # slow, and most workers never need it

    with ExitStack() as stack:
        yield open_s3(uri, stack) if scheme == "s3" else open_http(uri, settings, stack)


def _open_local(path: Path, uri: str) -> BinaryIO:
    """Open a file that is one even now; a pipe in its place would make a plain `open` wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError as error:
        raise DecodeError(
            f"media_uri {uri!r} cannot be opened: {error.strerror}", "media_forbidden"
        ) from error
    except OSError as error:
        raise TransientError(f"media_uri {uri!r} cannot be opened: {error.strerror}") from error
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise DecodeError(f"media_uri {uri!r} is no longer a file", "media_not_a_file")
    return file

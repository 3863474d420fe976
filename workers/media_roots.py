"""Which media may be read: the allow-list of folders and URL prefixes, and what lies inside; opens nothing.

    root                                 allows
    streams/data/clips, file:///clips    local files below, links followed first
    https://media.example.com/videos/    that host and port, paths below; http only where a root says so
    s3://bucket/prefix                   keys below

Local paths are resolved and compared; URLs are compared segment by segment after percent-decoding, and whatever could
make a server see another path than we do is refused: dot segments however often encoded, backslashes, user names,
fragments, fsspec's chained protocols.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec

from infra.errors import ConfigError, DecodeError, TransientError

_DEFAULT_PORTS = {"http": 80, "https": 443}
REMOTE_SCHEMES = (*_DEFAULT_PORTS, "s3")
_HOST = re.compile(r"[a-z0-9._-]*[a-z0-9_-]|[0-9a-f:.]+:[0-9a-f:.]*")
# Whoever encodes more often has something to hide.
_DECODINGS_MAX = 4


class TraversalError(ValueError):
    """A URL has a dot segment."""


@dataclass(frozen=True)
class _Location:
    """A URL, or the prefix of some, as it is compared."""

    scheme: str
    host: str
    port: int | None
    segments: tuple[str, ...]

    def holds(self, other: _Location) -> bool:
        """Return whether the other one lies below."""
        depth = len(self.segments)
        return (
            (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)
            and self.segments == other.segments[:depth]
            and len(other.segments) > depth
        )


def check_roots(roots: Sequence[str]) -> None:
    """Refuse roots that could never be read.

    Raises:
        ConfigError: one is no folder and no URL of a known scheme, or its scheme's package is missing.
    """
    for root in roots:
        if is_local(root):
            continue
        try:
            fsspec.get_filesystem_class(_prefix(root).scheme)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"FRESHET_UPLOADS__MEDIA_ROOTS has {root!r}: {error}; expected a folder or a URL of "
                f"{', '.join(REMOTE_SCHEMES)}, such as https://media.example.com/videos/"
            ) from error


def is_local(uri: str) -> bool:
    """Return whether a URI or a root is a path or a `file://` URI."""
    try:
        return urlsplit(uri).scheme in ("", "file")
    except ValueError:  # such as file://[x/
        return True


def resolve_local(uri: str, roots: Sequence[str]) -> Path:
    """Return the file that a `file://` URI or a plain path names, links followed, if it lies inside one of the roots.

    Relative paths, the roots' too, start at the working directory.

    Raises:
        DecodeError: with reason `media_uri`, `media_outside_roots` or `media_not_a_file`.
        TransientError: there is no such file (yet).
    """
    try:
        path = _path_in(uri).resolve()
        exists, is_file = path.exists(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, no URI
        raise DecodeError(f"media_uri {uri!r} cannot name a file: {error}", "media_uri") from error
    folders = (_path_in(root).resolve() for root in roots if is_local(root))
    if not any(path.is_relative_to(folder) for folder in folders):
        raise _outside(uri)
    if exists and not is_file:
        raise DecodeError(
            f"media_uri {uri!r} names a folder, a pipe or a device, expected a file",
            "media_not_a_file",
        )
    if not exists:
        raise TransientError(f"media_uri {uri!r} names no file")
    return path


def _path_in(uri: str) -> Path:
    if "\0" in uri:
        raise ValueError("it holds a null character")
    parts = urlsplit(uri)
    if not parts.scheme:
        return Path(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError("expected a path or a file:// URI")
    return Path(unquote(parts.path))


def resolve_remote(uri: str, roots: Sequence[str]) -> str:
    """Return a URL's scheme, if one of the roots allows the URL.

    Raises:
        DecodeError: with reason `media_uri` or `media_outside_roots`.
    """
    prefixes = [_prefix(root) for root in roots if not is_local(root)]
    try:
        location = _location(uri)
        if location.scheme not in {prefix.scheme for prefix in prefixes}:
            raise ValueError(f"no media root has the scheme {location.scheme}")
    except TraversalError as error:
        raise _outside(uri) from error
    except ValueError as error:
        raise DecodeError(
            f"media_uri {shown(uri)!r} cannot be read: {error}", "media_uri"
        ) from error
    if not any(prefix.holds(location) for prefix in prefixes):
        raise _outside(uri)
    return location.scheme


def _prefix(root: str) -> _Location:
    location = _location(root)
    segments = list(location.segments)
    while segments and not segments[-1]:  # videos and videos/ are the same prefix
        segments.pop()
    return _Location(location.scheme, location.host, location.port, tuple(segments))


def _location(url: str) -> _Location:
    if not url.isprintable() or " " in url or "\\" in url or "#" in url or "::" in url:
        raise ValueError("it holds a character that has no place in it, or chains protocols")
    parts = urlsplit(url)
    if parts.scheme not in REMOTE_SCHEMES:
        raise ValueError(f"expected a scheme of {', '.join(REMOTE_SCHEMES)}")
    if "@" in parts.netloc:
        raise ValueError("it holds a user name")
    is_http = parts.scheme in _DEFAULT_PORTS
    if is_http and not url.isascii():
        raise ValueError("it is not percent-encoded")
    if not is_http and (parts.query or parts.port is not None):
        raise ValueError("it holds a query or a port")
    host = parts.netloc if not is_http else (parts.hostname or "").lower()  # buckets are as spelt
    if not _HOST.fullmatch(host):
        raise ValueError("it has no plain host or bucket name")
    segments = parts.path.split("/")[1:]
    for segment in segments:
        _refuse_traversal(segment)
    return _Location(
        parts.scheme,
        host,
        parts.port or _DEFAULT_PORTS.get(parts.scheme),
        tuple(map(unquote, segments) if is_http else segments),  # keys of object stores are literal
    )


def _refuse_traversal(segment: str) -> None:
    """Raise if a server that decodes as often as it likes could see a dot segment."""
    for _ in range(_DECODINGS_MAX):
        for part in re.split(r"[/\\]", segment):
            if part.split(";")[0] in (".", ".."):
                raise TraversalError("it has a dot segment")
        decoded = unquote(segment)
        if decoded == segment:
            return
        if any(ord(character) < ord(" ") for character in decoded):
            raise ValueError("it holds a control character")
        segment = decoded
    raise ValueError("it is percent-encoded over and over")


def shown(uri: str) -> str:
    """Return a URI as it may be logged: without a query, which may be a signature, and without a user name."""
    return re.sub(r"//[^/]*@", "//…@", uri.split("?", 1)[0])


def _outside(uri: str) -> DecodeError:
    return DecodeError(
        f"media_uri {shown(uri)!r} leads outside the media roots; FRESHET_UPLOADS__MEDIA_ROOTS lists them",
        "media_outside_roots",
    )

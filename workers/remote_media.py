"""Media over HTTP and in S3, through fsspec: ranges where there are any, no redirects, no proxies, bounded answers.

Imported only once a URL has to be read, as aiohttp is slow to import. Knows nothing of roots and of decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

import aiohttp
import fsspec

from infra.clock import Deadline
from infra.errors import DecodeError, FreshetError, TransientError
from infra.settings import UploadSettings
from workers.media_roots import shown

BLOCK_BYTES = 1 << 20
"""Bytes of one ranged request; FFmpeg goes back and forth between a few places, whose blocks are kept."""
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0  # between two packets of an answer

_IN_MEMORY_BYTES = 8 << 20  # of a download; the rest of it goes to a file without a name
_FORBIDDEN = (401, 403, 407, 451)
_GONE = 410
_MAY_COME_BACK = (404, 408, 425, 429)


class _RangesIgnoredError(FreshetError):
    """The server answers a request for a range with the whole."""


class _RemoteFile:
    """An fsspec file whose errors are ours."""

    def __init__(
        self,
        file: Any,
        errors: tuple[type[Exception], ...],
        failure_of: Callable[[Exception], FreshetError],
    ) -> None:
        self._file = file
        self._errors = errors
        self._failure_of = failure_of
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except self._errors as error:
            raise self._failure_of(error) from error
        return data


def open_http(uri: str, settings: UploadSettings, stack: ExitStack) -> BinaryIO:
    """Return a file that reads by ranges, or a download where the server has none; `stack` closes it.

    Raises:
        DecodeError: the server says that it will not give the file, or never stops giving.
        TransientError: it gives nothing now.
    """
    filesystem = _http_filesystem(settings)
    errors = (aiohttp.ClientError, OSError, ValueError, FreshetError)

    def failure_of(error: Exception) -> FreshetError:
        return _http_failure(error, uri)

    def opened(block_bytes: int) -> _RemoteFile:
        kwargs = {"cache_type": "blockcache"} if block_bytes else {}
        try:
            file = filesystem.open(uri, "rb", block_size=block_bytes, **kwargs)
        except errors as error:
            raise failure_of(error) from error
        stack.callback(file.close)
        return _RemoteFile(file, errors, failure_of)

    try:
        file = opened(BLOCK_BYTES)
        has_ranges = file.read(1) != b""
        file.seek(0)
    except (_RangesIgnoredError, ValueError):  # where a server tells no size, fsspec cannot seek
        has_ranges = False
    if has_ranges:
        return cast(BinaryIO, file)
    return stack.enter_context(_downloaded(opened(0), uri, settings))


def _http_filesystem(settings: UploadSettings) -> Any:
    """Return the file system of http and https; fsspec gives the same one, with its connections, every time."""
    return fsspec.filesystem(
        "https",
        get_client=_session,
        encoded=True,  # signatures are over a URL as it is spelt
        client_kwargs={
            "timeout": aiohttp.ClientTimeout(
                total=settings.media_timeout_s,
                sock_connect=CONNECT_TIMEOUT_S,
                sock_read=READ_TIMEOUT_S,
            )
        },
        allow_redirects=False,
        headers={"Accept-Encoding": "identity"},
    )


async def _session(**kwargs: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        response_class=_BoundedResponse,
        raise_for_status=_check_status,
        auto_decompress=False,  # a few bytes may inflate to gigabytes
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        **kwargs,
    )


class _BoundedResponse(aiohttp.ClientResponse):
    """An answer of which no more than a block is taken; the server may never stop sending."""

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            DecodeError: it is larger than what was asked for.
        """
        body = bytearray()
        async for chunk in self.content.iter_any():
            body += chunk
            if len(body) > BLOCK_BYTES:
                self.close()
                raise DecodeError(
                    f"{shown(str(self.url))!r} sent more than the {BLOCK_BYTES} bytes asked for",
                    "media_too_many_bytes",
                )
        return bytes(body)


async def _check_status(response: aiohttp.ClientResponse) -> None:
    """Raise for every answer that is not the file, or the range of it, that was asked for."""
    status = response.status
    is_range = "Range" in response.request_info.headers
    if status == 206 or (status == 200 and not is_range) or (status == 416 and is_range):
        return
    response.close()
    what = f"{shown(str(response.url))!r} answered {status} {response.reason or ''}".rstrip()
    if status == 200:
        raise _RangesIgnoredError(what)
    if 300 <= status < 400:
        raise DecodeError(
            f"{what}: redirects are not followed, as they may lead anywhere", "media_redirect"
        )
    if status in _FORBIDDEN:
        raise DecodeError(what, "media_forbidden")
    if status == _GONE:
        raise DecodeError(what, "media_gone")
    if status in _MAY_COME_BACK or status >= 500:
        raise TransientError(what)
    raise DecodeError(f"{what}, expected the file", "media_http_status")


def _http_failure(error: BaseException, uri: str) -> FreshetError:
    """Return what an error means to the caller; fsspec hides what `_check_status` raised behind its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FreshetError):
            return cause
        if isinstance(cause, aiohttp.InvalidURL):
            return DecodeError(f"media_uri {shown(uri)!r} is no URL: {cause}", "media_uri")
        cause = cause.__cause__
    return TransientError(f"cannot read {shown(uri)!r}: {type(error).__name__}: {error}")


@contextmanager
def _downloaded(file: _RemoteFile, uri: str, settings: UploadSettings) -> Iterator[BinaryIO]:
    """Download everything, as FFmpeg has to seek.

    Raises:
        DecodeError: it is more than `media_max_bytes`, or takes longer than `media_timeout_s`.
    """
    deadline = Deadline(settings.media_timeout_s)
    with SpooledTemporaryFile(_IN_MEMORY_BYTES) as download:
        num_bytes = 0
        while chunk := file.read(BLOCK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > settings.media_max_bytes:
                raise DecodeError(
                    f"{shown(uri)!r} has no ranges and sends more than {settings.media_max_bytes} bytes",
                    "media_too_many_bytes",
                )
            if deadline.expired():
                raise DecodeError(
                    f"{shown(uri)!r} takes longer than {settings.media_timeout_s} s to download",
                    "media_timeout",
                )
            download.write(chunk)
        download.seek(0)
        yield cast(BinaryIO, download)


def open_s3(uri: str, stack: ExitStack) -> BinaryIO:
    """Return a file that reads an object by ranges; `stack` closes it. Credentials are the environment's.

    Raises:
        DecodeError: the bucket's owner does not let us.
        TransientError: it cannot be read now.
    """
    # Of the extra `s3`, without which no root has this scheme.
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    errors = (BotoCoreError, aiohttp.ClientError, OSError, ValueError)

    def failure_of(error: Exception) -> FreshetError:
        if isinstance(error, PermissionError):
            return DecodeError(f"cannot read {shown(uri)!r}: {error}", "media_forbidden")
        return TransientError(f"cannot read {shown(uri)!r}: {type(error).__name__}: {error}")

    try:
        filesystem = fsspec.filesystem(
            "s3",
            use_listings_cache=False,
            config_kwargs={"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S},
        )
        file = filesystem.open(uri, "rb", block_size=BLOCK_BYTES, cache_type="blockcache")
    except errors as error:
        raise failure_of(error) from error
    stack.callback(file.close)
    return cast(BinaryIO, _RemoteFile(file, errors, failure_of))

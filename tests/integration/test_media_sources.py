"""Media over HTTP from servers that behave and from servers that do not, on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.errors import DecodeError, TransientError
from infra.settings import UploadSettings
from models.media import Media
from tests.integration.media_server import Server
from workers.media_sources import load_media

pytestmark = pytest.mark.integration


@pytest.fixture
def server() -> Iterator[Server]:
    with Server.running() as running:
        yield running


@pytest.fixture
def load(server: Server) -> Callable[..., Media]:
    def load(name: str, **values: Any) -> Media:
        settings = UploadSettings(media_roots=(server.root,), **values)
        return load_media(server.root + name, settings)

    return load


def assert_whole(media: Media) -> None:
    assert media.frames is not None
    assert media.waveform is not None
    assert media.subtitles == "Hello"


def test_clip_is_read_by_ranges_without_proxies_and_cookies(
    load: Callable[..., Media], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    assert_whole(load("clip.mp4?sig=a%2Fb"))
    gets = [headers for command, _, headers in server.seen if command == "GET"]
    assert gets
    assert all("Range" in headers for headers in gets)
    assert {path for _, path, _ in server.seen} == {"/videos/clip.mp4?sig=a%2Fb"}


def test_server_without_ranges_is_downloaded_from(load: Callable[..., Media]) -> None:
    assert_whole(load("whole.mp4"))


@pytest.mark.parametrize(
    ("status", "reason"),
    [(301, "media_redirect"), (302, "media_redirect"), (307, "media_redirect"), (401, "media_forbidden"),
     (403, "media_forbidden"), (410, "media_gone"), (400, "media_http_status")],
)  # fmt: skip
def test_answer_that_stays_so_is_refused(
    status: int, reason: str, load: Callable[..., Media], server: Server
) -> None:
    with pytest.raises(DecodeError) as refusal:
        load(f"status_{status}.mp4")
    assert refusal.value.reason == reason
    assert {path for _, path, _ in server.seen} == {f"/videos/status_{status}.mp4"}


@pytest.mark.parametrize("status", [404, 408, 429, 500, 503])
def test_answer_that_may_change_is_transient(status: int, load: Callable[..., Media]) -> None:
    with pytest.raises(TransientError, match=str(status)):
        load(f"status_{status}.mp4")


def test_server_that_does_not_listen_may_come_back() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        root = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(TransientError, match="cannot read"):
            load_media(root + "clip.mp4", UploadSettings(media_roots=(root,)))


def test_answer_that_breaks_off_may_come_back(load: Callable[..., Media]) -> None:
    with pytest.raises(TransientError):
        load("cut.mp4")


@pytest.mark.parametrize("name", ["endless.mp4", "endless_range.mp4"])
def test_server_that_never_stops_is_hung_up_on(
    name: str, load: Callable[..., Media], server: Server
) -> None:
    with pytest.raises(DecodeError) as refusal:
        load(name, media_max_bytes=3_000_000)
    assert refusal.value.reason == "media_too_many_bytes"
    assert server.hung_up.wait(60)


def test_server_that_drips_runs_out_of_time(load: Callable[..., Media]) -> None:
    with pytest.raises(DecodeError) as refusal:
        load("drip.mp4", media_timeout_s=1.0)
    assert refusal.value.reason == "media_timeout"


def test_compressed_answer_is_not_inflated(load: Callable[..., Media]) -> None:
    with pytest.raises(DecodeError) as refusal:
        load("gzip.mp4")
    assert refusal.value.reason == "media_undecodable"


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Media]:
    """An S3 that has one bucket, as far as reading an object goes."""
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.root.removesuffix("/videos/"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    settings = UploadSettings(media_roots=("s3://bucket/videos",))
    return lambda name: load_media(f"s3://bucket/videos/{name}", settings)


def test_object_is_read_by_ranges(s3: Callable[[str], Media], server: Server) -> None:
    assert_whole(s3("clip.mp4"))
    assert {path for _, path, _ in server.seen} == {"/bucket/videos/clip.mp4"}
    assert any("Range" in headers for _, _, headers in server.seen)


def test_object_that_is_not_there_may_come_back(s3: Callable[[str], Media]) -> None:
    with pytest.raises(TransientError):
        s3("status_404.mp4")


def test_object_that_is_forbidden_is_refused(s3: Callable[[str], Media]) -> None:
    with pytest.raises(DecodeError) as refusal:
        s3("status_403.mp4")
    assert refusal.value.reason == "media_forbidden"

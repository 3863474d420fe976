"""What the allow-list lets through, however a URI is spelt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.errors import ConfigError, DecodeError, TransientError
from workers.media_roots import check_roots, resolve_local, resolve_remote, shown

ROOTS = (
    "https://media.example.com/videos/",
    "https://cdn.example.com:8443",
    "http://plain.example.com/a%20b/",
    "s3://bucket/prefix",
)


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("https://media.example.com/videos/a.mp4", "https"),
        ("HTTPS://Media.Example.COM:443/videos/a%20b/c.mp4?sig=x%2Fy", "https"),
        ("https://media.example.com/v%69deos/a.mp4", "https"),
        ("https://cdn.example.com:8443/any/where.webm", "https"),
        ("http://plain.example.com/a%20b/c.mp4", "http"),
        ("s3://bucket/prefix/a/b.mp4", "s3"),
    ],
)
def test_url_below_a_root_is_allowed(uri: str, scheme: str) -> None:
    assert resolve_remote(uri, ROOTS) == scheme


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example.com/videos/a.mp4",
        "https://media.example.com.evil.com/videos/a.mp4",
        "https://media.example.com/videos",
        "https://media.example.com/videos-private/a.mp4",
        "https://media.example.com/VIDEOS/a.mp4",
        "https://media.example.com//videos/a.mp4",
        "https://media.example.com/videos%2Fa.mp4",
        "https://media.example.com:8443/videos/a.mp4",
        "https://cdn.example.com/a.mp4",
        "http://media.example.com/videos/a.mp4",
        "https://media.example.com/videos/../secret.mp4",
        "https://media.example.com/videos/%2e%2e/secret.mp4",
        "https://media.example.com/videos/%252e%252e/secret.mp4",
        "https://media.example.com/videos/..%2Fsecret.mp4",
        "https://media.example.com/videos/..%5Csecret.mp4",
        "https://media.example.com/videos/..;x=1/secret.mp4",
        "https://media.example.com/videos/./a.mp4",
        "s3://other/prefix/a.mp4",
        "s3://bucket/prefix2/a.mp4",
        "s3://bucket/prefix/../secret.mp4",
    ],
)
def test_url_outside_the_roots_is_refused(uri: str) -> None:
    with pytest.raises(DecodeError) as refusal:
        resolve_remote(uri, ROOTS)
    assert refusal.value.reason == "media_outside_roots"


@pytest.mark.parametrize(
    "uri",
    [
        "https://media.example.com@evil.com/videos/a.mp4",
        "https://user:password@media.example.com/videos/a.mp4",
        "https://media.example.com\\@evil.com/videos/a.mp4",
        "https://media.example.com/videos/a.mp4#x",
        "https://media.example.com/videos/a b.mp4",
        "https://media.example.com/videos/a\n.mp4",
        "https://media.example.com/videos/a%00.mp4",
        "https://media.example.com/videos/%25252525252541.mp4",
        "https://media.example.com:99999/videos/a.mp4",
        "https://media.example.com:x/videos/a.mp4",
        "https://mediа.example.com/videos/a.mp4",
        "https://media.example.com/videos/é.mp4",
        "https:///videos/a.mp4",
        "https://[::1/videos/a.mp4",
        "simplecache::https://media.example.com/videos/a.mp4",
        "zip://a.mp4::https://media.example.com/videos/a.zip",
        "https://media.example.com/videos/a.zip::b",
        "ftp://media.example.com/videos/a.mp4",
        "github://org:repo@main/a.mp4",
        "data:video/mp4;base64,AAAA",
        "python://a",
        "s3://bucket/prefix/a.mp4?versionId=1",
        "s3://bucket:9000/prefix/a.mp4",
    ],
)
def test_uri_that_nobody_may_use_is_refused(uri: str) -> None:
    with pytest.raises(DecodeError) as refusal:
        resolve_remote(uri, ROOTS)
    assert refusal.value.reason == "media_uri"


@pytest.mark.parametrize(
    "root",
    [
        "zip://a.zip",
        "simplecache::https://x.com/",
        "https://user@x.com/",
        "https://x.com/../",
        "s3://",
        "ftp://x.com/",
    ],
)
def test_root_that_could_never_be_read_is_a_setting_to_mend(root: str) -> None:
    with pytest.raises(ConfigError, match="MEDIA_ROOTS"):
        check_roots(["streams/data/clips", root])


def test_roots_of_every_kind_are_fine() -> None:
    pytest.importorskip("s3fs")
    check_roots(["streams/data/clips", "file:///clips", *ROOTS])


def test_media_inside_a_root_is_found_by_path_and_by_uri(tmp_path: Path) -> None:
    clip = tmp_path / "a clip.mp4"
    clip.touch()
    for root in (str(tmp_path), tmp_path.as_uri()):
        assert resolve_local(str(clip), [root]) == clip
        assert resolve_local(clip.as_uri(), [root]) == clip


def test_media_outside_the_roots_is_refused_however_it_is_spelt(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret.mp4"
    root.mkdir()
    secret.touch()
    (root / "link.mp4").symlink_to(secret)
    for uri in (
        str(secret),
        secret.as_uri(),
        f"{root}/../secret.mp4",
        f"file://{root}/%2e%2e/secret.mp4",
        f"{root}/link.mp4",
        f"{root}-sibling/secret.mp4",
        "/etc/passwd",
    ):
        with pytest.raises(DecodeError) as refusal:
            resolve_local(uri, [str(root), "https://media.example.com/"])
        assert refusal.value.reason == "media_outside_roots", uri


@pytest.mark.parametrize("uri", ["file://elsewhere/clip.mp4", "file://[x/", "a\0b", "x" * 2000])
def test_path_that_names_no_file_of_ours_is_refused(uri: str) -> None:
    with pytest.raises(DecodeError) as refusal:
        resolve_local(uri, ["."])
    assert refusal.value.reason == "media_uri"


def test_media_in_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    with pytest.raises(DecodeError):
        resolve_local(str(tmp_path / "loop.mp4"), [str(tmp_path)])


def test_pipe_and_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for uri in (str(tmp_path / "pipe.mp4"), str(tmp_path)):
        with pytest.raises(DecodeError) as refusal:
            resolve_local(uri, [str(tmp_path)])
        assert refusal.value.reason == "media_not_a_file"


def test_media_that_are_not_there_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"late\.mp4"):
        resolve_local(str(tmp_path / "late.mp4"), [str(tmp_path)])


def test_uri_is_shown_without_its_secrets() -> None:
    assert shown("https://user:secret@x.com/a.mp4?sig=secret") == "https://…@x.com/a.mp4"

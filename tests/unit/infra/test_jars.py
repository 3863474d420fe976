"""The broker's jars: locked, verified, fetched once, and the ways out when that fails."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.kafka.jars import (
    LOCK_FILE,
    LockedJar,
    default_jars_dir,
    ensure_jars,
    parse_lock,
)

BODY = b"PK a jar"
JAR = LockedJar("org.example:small:jar:1.2", hashlib.sha256(BODY).hexdigest())
WAYS_OUT = ("FRESHET_KAFKA__BOOTSTRAP_SERVERS", "FRESHET_KAFKA__JARS_DIR", "HTTPS_PROXY")


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.lock"
    path.write_text(f"# one jar\n\n{JAR.coordinate} {JAR.sha256}\n")
    return path


def fetch_body(jar: LockedJar) -> bytes:
    return BODY


def refuse_to_fetch(jar: LockedJar) -> bytes:
    raise AssertionError(f"{jar.coordinate} fetched although it is there")


def test_lock_file_with_comments_gives_its_jars() -> None:
    jars = parse_lock(f"# heading\n\n{JAR.coordinate} {JAR.sha256}  # why\n")

    assert jars == (JAR,)
    assert jars[0].file_name == "small-1.2.jar"


@pytest.mark.parametrize("line", ["g:a:jar:1", "g:a:1 " + "0" * 64, "g:a:jar:1 abc", "a b c"])
def test_lock_file_with_a_malformed_line_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        parse_lock(line)


def test_checked_in_lock_file_holds_kafka_and_a_log_binding_without_duplicates() -> None:
    jars = parse_lock(LOCK_FILE.read_text())
    names = {jar.file_name for jar in jars}

    assert len(names) == len(jars)
    assert "kafka_2.13-4.4.0.jar" in names
    assert any(name.startswith("log4j-slf4j-impl-") for name in names)


def test_missing_jar_is_fetched_into_a_new_folder(tmp_path: Path, lock_file: Path) -> None:
    jars_dir = tmp_path / "new" / "jars"

    (path,) = ensure_jars(jars_dir, lock_file=lock_file, fetch=fetch_body)

    assert path.read_bytes() == BODY
    assert list(jars_dir.iterdir()) == [path]


def test_present_jar_is_not_fetched_again(tmp_path: Path, lock_file: Path) -> None:
    (tmp_path / JAR.file_name).write_bytes(BODY)

    assert ensure_jars(tmp_path, lock_file=lock_file, fetch=refuse_to_fetch)


def test_damaged_jar_is_fetched_again(tmp_path: Path, lock_file: Path) -> None:
    (tmp_path / JAR.file_name).write_bytes(BODY[:-1])

    (path,) = ensure_jars(tmp_path, lock_file=lock_file, fetch=fetch_body)

    assert path.read_bytes() == BODY


def test_fetched_jar_with_another_hash_is_refused_with_the_ways_out(
    tmp_path: Path, lock_file: Path
) -> None:
    jars_dir = tmp_path / "jars"

    with pytest.raises(ConfigError) as caught:
        ensure_jars(jars_dir, lock_file=lock_file, fetch=lambda jar: b"something else")

    message = str(caught.value)
    assert JAR.coordinate in message
    assert JAR.sha256 in message
    assert all(way in message for way in WAYS_OUT)
    assert not (jars_dir / JAR.file_name).exists()


def test_unreachable_network_is_an_error_with_the_ways_out(
    tmp_path: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nothing listens there

    with pytest.raises(ConfigError, match="could not be fetched") as caught:
        ensure_jars(tmp_path, lock_file=lock_file)

    assert all(way in str(caught.value) for way in WAYS_OUT)


def test_two_fetches_at_once_both_end_with_the_jar(tmp_path: Path, lock_file: Path) -> None:
    both_fetching = threading.Barrier(2)

    def fetch_together(jar: LockedJar) -> bytes:
        both_fetching.wait(timeout=60)
        return BODY

    def ensure() -> tuple[Path, ...]:
        return ensure_jars(tmp_path / "jars", lock_file=lock_file, fetch=fetch_together)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(ensure), pool.submit(ensure)

    assert first.result() == second.result()
    assert first.result()[0].read_bytes() == BODY


def test_jars_in_a_relative_folder_get_absolute_paths(
    tmp_path: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    paths = ensure_jars(Path("jars"), lock_file=lock_file, fetch=fetch_body)

    assert paths == (tmp_path / "jars" / JAR.file_name,)


def test_cache_follows_the_xdg_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")

    assert default_jars_dir() == Path("/somewhere/freshet/kafka-4.4.0")

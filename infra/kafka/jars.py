"""The broker's jars, fetched once by a checked-in lock file; knows nothing of how a broker is started."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from maven_artifact import Artifact, Downloader

from infra.errors import ConfigError

KAFKA_VERSION = "4.4.0"
LOCK_FILE = Path(__file__).with_name("jars.lock")
FETCH_THREADS = 8
FETCH_ATTEMPTS = 3  # a reset connection must not fail a whole set-up
FETCH_TIMEOUT_S = (10, 60)  # to connect, and between two reads


@dataclass(frozen=True)
class LockedJar:
    """One line of the lock file: where a jar comes from and what it must be.

    Attributes:
        coordinate: group:artifact:jar:version.
        sha256: of the jar's bytes, in hexadecimal.
    """

    coordinate: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name that Maven gives it: artifact-version.jar."""
        _, artifact, extension, version = self.coordinate.split(":")
        return f"{artifact}-{version}.{extension}"

    def is_at(self, path: Path) -> bool:
        """Say whether the file at `path` is this very jar."""
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


Fetch = Callable[[LockedJar], bytes]


def default_jars_dir() -> Path:
    """Return the per-user cache of the broker's jars."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "freshet" / f"kafka-{KAFKA_VERSION}"


def parse_lock(text: str) -> tuple[LockedJar, ...]:
    """Parse a lock file: `coordinate sha256` a line, comments from `#`.

    Raises:
        ConfigError: a line is neither.
    """
    lines = (line.partition("#")[0].split() for line in text.splitlines())
    return tuple(_parse_line(fields) for fields in lines if fields)


def _parse_line(fields: list[str]) -> LockedJar:
    match fields:
        case [coordinate, sha256] if coordinate.count(":") == 3 and len(sha256) == 64:
            return LockedJar(coordinate, sha256)
    raise ConfigError(
        f"{LOCK_FILE.name} has the line {' '.join(fields)!r}, expected"
        " `group:artifact:jar:version sha256`; restore the file from version control."
    )


def fetch_jar(jar: LockedJar) -> bytes:
    """Download one jar's bytes, unverified.

    Blocks: on the network, `FETCH_ATTEMPTS` times `FETCH_TIMEOUT_S` at most where nothing answers.

    Raises:
        OSError: it could not be fetched.
    """

    def fail(url: str, error: Exception) -> None:
        raise OSError(f"{url}: {error}") from error

    # `Downloader.download` would print, write in place and never time out; its parts do not.
    downloader = Downloader()
    url = downloader.resolver.uri_for_artifact(Artifact.parse(jar.coordinate))
    attempts_left = FETCH_ATTEMPTS
    while True:
        attempts_left -= 1
        try:
            body: bytes = downloader.requestor.request(
                url, fail, lambda response: response.content, timeout=FETCH_TIMEOUT_S
            )
        except OSError:
            if not attempts_left:
                raise
        else:
            return body


def ensure_jars(
    jars_dir: Path | None = None, *, lock_file: Path = LOCK_FILE, fetch: Fetch = fetch_jar
) -> tuple[Path, ...]:
    """Return the absolute paths of all locked jars, each present and verified, in the lock file's order.

    What is missing or damaged is fetched into `jars_dir` (the per-user cache by default). Each jar
    appears under its name in one rename, so processes that do this at once do not disturb each other.

    Raises:
        ConfigError: a jar cannot be fetched, or is not what the lock file says.
    """
    jars_dir = (jars_dir or default_jars_dir()).expanduser().resolve()
    jars = parse_lock(lock_file.read_text())
    missing = [jar for jar in jars if not jar.is_at(jars_dir / jar.file_name)]
    with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="jars") as pool:
        stored = [pool.submit(_store, jar, jars_dir, fetch) for jar in missing]
        try:
            for future in stored:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return tuple(jars_dir / jar.file_name for jar in jars)


def _store(jar: LockedJar, jars_dir: Path, fetch: Fetch) -> None:
    try:
        body = fetch(jar)
    except OSError as exc:
        raise _refusal(jar, jars_dir, f"could not be fetched: {exc}") from exc
    got = hashlib.sha256(body).hexdigest()
    if got != jar.sha256:
        raise _refusal(
            jar, jars_dir, f"does not match its lock: got sha256 {got}, expected {jar.sha256}"
        )
    try:
        jars_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=jars_dir, prefix=".fetch-") as folder:
            unnamed = Path(folder) / jar.file_name
            unnamed.write_bytes(body)
            unnamed.replace(jars_dir / jar.file_name)
    except OSError as exc:
        raise _refusal(jar, jars_dir, f"could not be written: {exc}") from exc


def _refusal(jar: LockedJar, jars_dir: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"The local Kafka broker needs {jar.coordinate} in {jars_dir}, and it {reason}\n"
        "Ways out:\n"
        "  1. use an existing cluster: set FRESHET_KAFKA__BOOTSTRAP_SERVERS to its host:port;\n"
        f"  2. bring the jars by hand: copy {default_jars_dir()} from a machine where this works\n"
        "     to the same place here, or to a folder named by FRESHET_KAFKA__JARS_DIR;\n"
        "  3. check the network: proxy (HTTPS_PROXY), certificates (REQUESTS_CA_BUNDLE), and\n"
        "     whether a mirror in between alters or withholds the file; then run this again."
    )

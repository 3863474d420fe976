"""Files that become visible whole or not at all, on local disk or any fsspec object store.

Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec

from infra.errors import TransientError, VersionMismatchError

COPY_KEPT_S = 600.0
"""Long enough for whoever was handed a copy to have loaded it."""


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ObjectStore:
    """A root under which paths are relative, POSIX-style keys.

    Local roots use write, fsync, rename, fsync of the folder; object stores make a put visible
    atomically by themselves.
    """

    def __init__(self, root: str) -> None:
        remote = {"use_listings_cache": False} if "://" in root else {}  # others write here too
        self._filesystem, self._root = fsspec.core.url_to_fs(root, **remote)
        self.is_local = "file" in (
            self._filesystem.protocol
            if isinstance(self._filesystem.protocol, tuple)
            else (self._filesystem.protocol,)
        )
        if self.is_local:
            self._root = str(Path(self._root).absolute())
            Path(self._root).mkdir(parents=True, exist_ok=True)

    def _full(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"key {key!r} leaves the store; keys are relative and have no '..'")
        return f"{self._root}/{key}"

    @property
    def root(self) -> str:
        """Where it is, for a process with another working directory."""
        return self._root if self.is_local else self._filesystem.unstrip_protocol(self._root)

    def filesystem_and_path(self, key: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return what a library needs that writes under `key` by itself."""
        return self._filesystem, self._full(key)

    def put_bytes(self, key: str, data: bytes) -> str:
        """Write `data` under `key` and return its sha256; on return it is durable and whole."""
        full = self._full(key)
        if self.is_local:
            write_atomically(Path(full), data)
        else:
            self._filesystem.pipe_file(full, data)
        return hashlib.sha256(data).hexdigest()

    def get_bytes(self, key: str, *, sha256: str | None = None) -> bytes:
        """Read `key`, checking its hash when one is given.

        Raises:
            TransientError: there is nothing under `key`.
            VersionMismatchError: the hash differs.
        """
        try:
            data: bytes = self._filesystem.cat_file(self._full(key))
        except FileNotFoundError as error:
            raise TransientError(f"{key} is not in the object store at {self._root}") from error
        found = hashlib.sha256(data).hexdigest()
        if sha256 is not None and found != sha256:
            raise VersionMismatchError(f"{key} has sha256 {found}, announced was {sha256}")
        return data

    def exists(self, key: str) -> bool:
        """Return whether something is stored under `key`."""
        return bool(self._filesystem.exists(self._full(key)))

    def unchanged_for(self, prefix: str, age_s: float) -> list[str]:
        """Return the keys of all files under a folder, half-written ones too, that are at least so old."""
        full = self._full(prefix)
        if not self._filesystem.exists(full):
            return []
        before = datetime.now(UTC) - timedelta(seconds=age_s)
        start = len(self._root) + 1
        found = (str(path) for path in self._filesystem.find(full))
        return sorted(path[start:] for path in found if self._filesystem.modified(path) <= before)

    def list(self, prefix: str) -> list[str]:
        """Return the keys of all files under a folder, sorted; what a crash left half-written is not among them."""
        full = self._full(prefix)
        if not self._filesystem.exists(full):
            return []
        start = len(self._root) + 1
        found = (str(path) for path in self._filesystem.find(full))
        return sorted(path[start:] for path in found if not _is_temporary(path))

    def put_directory(self, key: str, source: Path) -> None:
        """Copy a local folder's files under `key`; publish whatever names them (a manifest) afterwards."""
        for path in sorted(source.rglob("*")):
            if path.is_file():
                self.put_bytes(f"{key}/{path.relative_to(source).as_posix()}", path.read_bytes())

    def local_directory(self, key: str, cache: Path) -> Path:
        """Return a local folder with the files under `key` as they are now; load them soon.

        Those of a remote store are copied into a new folder in `cache`, as other processes may still be loading an
        earlier copy; copies older than `COPY_KEPT_S` go.
        """
        if self.is_local:
            return Path(self._full(key))
        copies = cache / "copies"
        _remove_older(copies, COPY_KEPT_S)
        copy = copies / uuid.uuid4().hex
        for name in self.list(key):
            path = copy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get_bytes(name))
        return copy / key

    def remove(self, key: str) -> None:
        """Remove a file or folder; nothing happens when it is not there."""
        full = self._full(key)
        if not key.strip("./"):
            raise ValueError(f"key {key!r} is the whole store; name what to remove")
        if self.is_local:
            path = Path(full)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        elif self._filesystem.exists(full):
            self._filesystem.rm(full, recursive=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, so that a reader or a crash sees the old content or the new, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _remove_older(folder: Path, age_s: float) -> None:
    """Remove the entries of a folder that are at least so old; another process may be doing the same."""
    before = time.time() - age_s
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime <= before:
                shutil.rmtree(path)


def _is_temporary(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(".tmp")


def sync_directory(path: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

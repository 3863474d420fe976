"""The real `prometheus` and `promtool`, for tests of what they read: on the PATH, or out of Debian's package.

`python -m tests.prometheus_binaries` fetches the package where there is none: it is unpacked, not installed, so that
nobody has to be root and no server is started.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "var" / "cache" / "prometheus"
UNPACKED = FOLDER / "usr" / "bin"
MISSING = (
    "these tests need the real Prometheus, and `{name}` is neither on the PATH nor in {folder}: install it "
    "(apt install prometheus), or run `make prometheus`, which unpacks Debian's package there"
)


def binary(name: str) -> Path:
    """Return the path of `prometheus` or `promtool`.

    Raises:
        FileNotFoundError: there is none; the message says how to come by it.
    """
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    if found is None:
        raise FileNotFoundError(MISSING.format(name=name, folder=UNPACKED))
    return Path(found)


def fetch() -> None:
    """Unpack Debian's package into `FOLDER`.

    Raises:
        FileNotFoundError: this system has no apt-get.
        CalledProcessError: the package could not be had.
    """
    # Package lists of our own, where the system has none: who is not root can update only those.
    lists, archives = FOLDER / "lists", FOLDER / "archives"
    for folder in (lists / "partial", archives / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache::Archives={archives}"]
    own += ["-o", "APT::Sandbox::User="]
    download = ["download", "--quiet", "prometheus"]
    if subprocess.run(["apt-get", *download], cwd=archives, check=False).returncode != 0:
        subprocess.run(["apt-get", *own, "update", "--quiet"], check=True)
        subprocess.run(["apt-get", *own, *download], cwd=archives, check=True)
    newest = max(archives.glob("prometheus_*.deb"), key=lambda path: path.stat().st_mtime)
    subprocess.run(["dpkg-deb", "--extract", newest, FOLDER], check=True)
    for folder in (lists, archives):
        shutil.rmtree(folder)


def main() -> int:
    """Fetch what is missing; where it cannot be had, say so and fail."""
    try:
        for name in ("prometheus", "promtool"):
            binary(name)
    except FileNotFoundError as missing:
        try:
            fetch()
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            print(f"{error}\n{missing}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

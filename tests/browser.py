"""A real Chromium for the tests of the page: the system's, as no Python package has one.

`python -m tests.browser` installs Debian's package where there is no browser, which only root can.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    f"the tests of the page drive a real browser, and none of {', '.join(PROGRAMS)} is on the PATH: "
    "apt install chromium, or run `make browser` as root"
)
QUIET = [  # nothing of its own to ask the network for
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]


def program() -> str | None:
    """Return the path of a browser; None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; without one on the machine the tests that need it fail and say what to install."""
    path = program()
    if path is None:
        pytest.fail(MISSING, pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


def main() -> int:
    """Install a browser where there is none; where it cannot be had, say so and fail."""
    if program() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        apt = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "chromium"]
        for command in (["apt-get", "update", "--quiet"], install):
            subprocess.run(command, env=apt, stdout=subprocess.DEVNULL, check=False)
    if program() is None:
        print(MISSING, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

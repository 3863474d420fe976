"""What operators' commands print: times for people, and texts that cannot steer a terminal; nothing of who prints."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_URL_SECRETS = re.compile(r"(\w+://)(?:[^\s/@'\"]+@)?([^\s?'\"]*)(\?[^\s'\"]*)?")


def utc(time_ms: int) -> str:
    """Return epoch milliseconds as `2026-01-31T12:00:00.000Z`."""
    time = datetime.fromtimestamp(time_ms / 1000, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(text: str) -> str:
    """Return a text with everything escaped that is not printed: what others sent may hold anything."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def masked(text: str) -> str:
    """Return a text whose URLs have neither user nor query: signatures and passwords stand there."""
    return _URL_SECRETS.sub(lambda found: found[1] + found[2] + ("?…" if found[3] else ""), text)

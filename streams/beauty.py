"""Amazon Beauty (5-core) as a stream of uploads and watches; knows nothing of Kafka or of pacing.

A pure function of the data set's folder, which holds `items.jsonl` (item, asin, title, attributes, first_seen) and
`interactions.csv` (user, item, timestamp, pos, split). It may not be copied into the project. What is assumed, since
Amazon records reviews of products and not watches:

- Uploads. A product is uploaded 24 h before its first review. Its attributes are a brand, where one is known, and the
  path of its category: the brand becomes the channel, the last step of the path the category, the steps before it
  the topics. There are no updates.
- Watches. A review is a watch at the review's time, which is exact to the day, of a nominal 600 s, watched whole;
  nothing is said of likes. All come from `home`: what else was looked at that day is unknown.
- Order. Event time, then uploads before watches, then the order of the files, which keeps a user's own order within a
  day. Ids are functions of the data.

Source: McAuley et al. 2015, in the leave-one-out split that TIGER (Rajput et al. 2023) is measured on.
"""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from pydantic import ValidationError

from infra.errors import ConfigError
from infra.settings import Settings
from streams.events import VideoUploaded, WatchEvent
from streams.timeline import Timeline, on_timeline

SETTING = "FRESHET_DATA__BEAUTY"
ITEMS_FILE, INTERACTIONS_FILE = "items.jsonl", "interactions.csv"
UPLOAD_LEAD_MS = 24 * 3_600_000
NOMINAL_DURATION_S = 600.0
DEPARTMENTS = {
    "Skin Care", "Hair Care", "Makeup", "Bath & Body", "Tools & Accessories", "Fragrance",
}  # fmt: skip
"""With which every category's path begins; whatever stands before one of these is a brand."""


class _Attributes(NamedTuple):
    brand: str
    path: tuple[str, ...]


def load_timeline(settings: Settings) -> Timeline:
    """Return the whole data set as one timeline.

    Raises:
        ConfigError: the setting that names the folder is unset, or a file is missing or has a bad row.
    """
    folder = settings.data.beauty
    if folder is None:
        raise ConfigError(
            f"{SETTING} is not set; it names the folder with Amazon Beauty's {ITEMS_FILE} and {INTERACTIONS_FILE}"
        )
    uploads = list(_uploads(folder / ITEMS_FILE))
    known = {upload.video_id for upload in uploads}
    events: list[VideoUploaded | WatchEvent] = [
        *uploads,
        *_watches(folder / INTERACTIONS_FILE, known),
    ]
    # Uploads come first, which the stable sort keeps among equal times.
    return Timeline(tuple(sorted(map(on_timeline, events), key=lambda each: each.event_time_ms)))


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from file
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path.name} is missing in {path.parent}; {SETTING} names the folder with Amazon Beauty"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path.name} in {path.parent} is not UTF-8 ({error}); get it anew"
        ) from error


def _refuse(path: Path, row: int, problem: object) -> NoReturn:
    raise ConfigError(
        f"{path.name} in {path.parent}, row {row}: {problem}; {SETTING} names the folder, get the file anew"
    )


def _uploads(path: Path) -> Iterator[VideoUploaded]:
    for row, line in enumerate(_lines(path), start=1):
        try:
            yield _upload(json.loads(line))
        except ValidationError as error:
            _refuse(path, row, error.errors()[0]["msg"])
        except KeyError as error:
            _refuse(path, row, f"no field {error}")
        except (ValueError, TypeError) as error:  # JSON errors are ValueErrors
            _refuse(path, row, error)


def _upload(item: dict[str, object]) -> VideoUploaded:
    number, first_seen_s = item["item"], item["first_seen"]
    if not isinstance(number, int) or not isinstance(first_seen_s, int):
        raise TypeError(f"item {number!r} and first_seen {first_seen_s!r}, expected whole numbers")
    attributes = item["attributes"]
    if not isinstance(attributes, list):
        raise TypeError(f"attributes are {attributes!r}, expected a list")
    brand, path = _parted([html.unescape(str(each)) for each in attributes])
    return VideoUploaded(
        event_id=f"ab-upload-{number}",
        event_time_ms=first_seen_s * 1000 - UPLOAD_LEAD_MS,
        video_id=f"ab-{number}",
        title=html.unescape(str(item["title"])),
        channel=brand,
        category=path[-1] if path else "",
        topics=path[:-1],
    )


def _parted(attributes: list[str]) -> _Attributes:
    if not attributes or attributes[0] in DEPARTMENTS:
        return _Attributes("", tuple(attributes))
    brand = "" if attributes[0] == "Unknown" else attributes[0]
    return _Attributes(brand, tuple(attributes[1:]))


def _watches(path: Path, known: set[str]) -> Iterator[WatchEvent]:
    rows = csv.DictReader(_lines(path))
    for row, found in enumerate(rows, start=2):  # the header is row 1
        try:
            yield _watch(found, known)
        except KeyError as error:
            _refuse(path, row, f"no column {error}")
        except (ValueError, TypeError) as error:
            _refuse(path, row, error)


def _watch(row: dict[str, str], known: set[str]) -> WatchEvent:
    user, item, time_s = int(row["user"]), int(row["item"]), int(row["timestamp"])
    if f"ab-{item}" not in known:
        raise ValueError(f"item {item} is not in {ITEMS_FILE}")
    return WatchEvent(
        event_id=f"ab-watch-{user}-{int(row['pos'])}",
        event_time_ms=time_s * 1000,
        user_id=f"ab-{user}",
        video_id=f"ab-{item}",
        surface="home",
        watched_s=NOMINAL_DURATION_S,
        duration_s=NOMINAL_DURATION_S,
    )

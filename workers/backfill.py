"""Codes for what is already there: a range of `video.uploads`, or a catalogue in a file, under the current codebook.

It computes in its own process and writes to `video.codes`, so that no live upload waits for it; allocation and
settling are the uploads worker's. Every record keeps its own position, so no live edit is ever reverted.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from confluent_kafka import Message

from infra.clock import Deadline, now_ms
from infra.errors import ConfigError, DecodeError, TransientError
from infra.settings import Settings
from infra.storage import sha256_of
from streams.catalogue import upload_position
from streams.client import TopicReader
from streams.codec import decode_upload
from streams.events import VideoRemoved
from streams.ranges import Offsets
from streams.tables import BadRow, Table
from streams.topics import UPLOADS
from workers.backfill_coding import Coder, ToCode
from workers.featurize import Featurizer, check_times

STALL_S = 120.0
CATALOGUE_POSITION = -1
"""Before that of any upload in Kafka, as the bootstrap's."""

Progress = Callable[[str, int, int], None]


@dataclass
class Backfilled:
    """What a backfill did so far.

    Attributes:
        coded: videos whose codes were published.
        outdated: records that a newer one of the same video follows within the range.
        removed: videos whose newest record within the range removes them.
        refused: by reason, what cannot be used.
        failures: the same of a catalogue, row by row.
    """

    coded: int = 0
    outdated: int = 0
    removed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    finished: bool = False


class BackfillState:
    """The file that an interrupted backfill goes on from; it exists between the first batch and the last."""

    def __init__(self, var_dir: Path) -> None:
        self._path = var_dir / "backfill.json"

    def load(self, *, codebook_version: int) -> dict[str, Any]:
        """Return what an interrupted backfill said.

        Raises:
            ConfigError: there is none, or it ran under another codebook.
        """
        if not self._path.exists():
            raise ConfigError(f"nothing to resume: {self._path} does not exist")
        state: dict[str, Any] = json.loads(self._path.read_text())
        if state["codebook_version"] != codebook_version:
            raise ConfigError(
                f"the interrupted backfill wrote codes of codebook {state['codebook_version']}, the current one is "
                f"{codebook_version}: begin it anew, without --resume"
            )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(state, indent=2) + "\n")
        new.replace(self._path)

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


class Backfill:
    """One run; `range` or `catalogue` is called once."""

    def __init__(
        self,
        settings: Settings,
        featurizer: Featurizer,
        *,
        stopping: threading.Event,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """Stop between batches once `stopping` is set; tell `progress` (stage, done, total)."""
        self._settings = settings
        self._codebook_version = featurizer.codebook.codebook_version
        self._coder = Coder(settings, featurizer)
        self._stopping = stopping
        self._progress = progress
        self._state = BackfillState(settings.var_dir)
        self.done = Backfilled()

    def range(self, start: Offsets, ends: Offsets) -> dict[str, int]:
        """Code the newest upload of each video between two offsets of each partition; return the next offsets.

        Delivery: what the state file counts as done is acknowledged. Killed, up to a batch is coded again on resume:
        the same codes at the same positions.
        Blocks: until the end of the range, or until it is told to stop.

        Raises:
            TransientError: the brokers stopped answering.
        """
        self._save_range(start, ends)
        newest = self._newest(start, ends)
        total = sum(max(0, end - start.get(at, 0)) for at, end in ends.items())
        with TopicReader(self._settings.kafka, [UPLOADS], start=start) as reader:
            for messages in self._batches(reader, ends):
                self._code(list(self._worth_coding(messages, newest)))
                self._save_range(reader.next_offsets, ends)
                self._progress("code", total - _left(reader.next_offsets, ends), total)
            left = _left(reader.next_offsets, ends)
            reached = reader.next_offsets
        self._finish(finished=left == 0)
        return _as_json(reached, ends)

    def catalogue(self, table: Table, *, mapping: str, skip_rows: int = 0) -> int:
        """Code the newest row of each video of a file, after the first `skip_rows`; return how many rows are done.

        Delivery: as `range`.
        """
        state = {"source": str(table.path), "sha256": sha256_of(table.path), "columns": mapping}
        self._save(state | {"rows": skip_rows})
        newest: dict[str, tuple[int, int]] = {}  # video_id -> event time, row
        total = 0
        for total, row in enumerate(table.rows(), start=1):  # noqa: B007 - counted to the end
            if not isinstance(row, BadRow):
                at = (row.event.event_time_ms, row.number)
                newest[row.event.video_id] = max(at, newest.get(row.event.video_id, at))
        rows = islice(table.rows(), skip_rows, None)
        done = skip_rows
        while not self._stopping.is_set():
            batch = list(islice(rows, self._settings.uploads.batch_max))
            if not batch:
                break
            self._code(list(self._rows_worth_coding(table, batch, newest)))
            done += len(batch)
            self._save(state | {"rows": done})
            self._progress("code", done, total)
        self._finish(finished=done >= total)
        return done

    def _newest(self, start: Offsets, ends: Offsets) -> dict[str, tuple[int, int]]:
        """Return the newest position of each video within the range, and the offset that has it."""
        newest: dict[str, tuple[int, int]] = {}
        total = sum(max(0, end - start.get(at, 0)) for at, end in ends.items())
        read = 0
        with TopicReader(self._settings.kafka, [UPLOADS], start=start) as reader:
            for messages in self._batches(reader, ends, max_records=1000):
                for message in messages:
                    try:
                        video_id = decode_upload(message.value()).video_id
                        at = (_position(message), message.offset())
                    except DecodeError:
                        continue  # counted when it is to be coded
                    newest[video_id] = max(at, newest.get(video_id, at))
                read += len(messages)
                self._progress("read", read, total)
        return newest

    def _batches(
        self, reader: TopicReader, ends: Offsets, *, max_records: int | None = None
    ) -> Iterator[list[Message]]:
        """Yield the records of the range, until it ends or this is told to stop."""
        stalled = Deadline(STALL_S)
        while _left(reader.next_offsets, ends) and not self._stopping.is_set():
            found = reader.poll(max_records=max_records or self._settings.uploads.batch_max)
            if found:
                stalled = Deadline(STALL_S)
            elif stalled.expired():
                raise TransientError(f"{UPLOADS.name} gave nothing for {STALL_S} s; is Kafka well?")
            if messages := [
                message
                for topic, message in found
                if message.offset() < ends[topic.name, message.partition()]
            ]:
                yield messages

    def _worth_coding(
        self, messages: Sequence[Message], newest: dict[str, tuple[int, int]]
    ) -> Iterator[ToCode]:
        for message in messages:
            try:
                upload, position = decode_upload(message.value()), _position(message)
                slack_s = self._settings.uploads.future_slack_s
                check_times(upload, message.timestamp()[1], slack_s=slack_s)
            except DecodeError as error:
                self.done.refused[error.reason] += 1
                continue
            if newest.get(upload.video_id) != (position, message.offset()):
                self.done.outdated += 1
            elif isinstance(upload, VideoRemoved):
                self.done.removed += 1
            else:
                yield ToCode(upload, message.timestamp()[1], position, "")

    def _rows_worth_coding(
        self, table: Table, batch: Iterable[Any], newest: dict[str, tuple[int, int]]
    ) -> Iterator[ToCode]:
        for row in batch:
            if isinstance(row, BadRow):
                self.done.refused["invalid_row"] += 1
                self.done.failures.append(table.describe(row))
            elif newest[row.event.video_id] != (row.event.event_time_ms, row.number):
                self.done.outdated += 1
            else:
                place = f"{table.path} {table.place} {row.number}"
                yield ToCode(row.event, now_ms(), CATALOGUE_POSITION, place)

    def _code(self, wanted: Sequence[ToCode]) -> None:
        refused = self._coder.code(wanted)
        for each, error in refused:
            self.done.refused[error.reason] += 1
            if each.place:
                self.done.failures.append(f"{each.place}: {error}")
        self.done.coded += len(wanted) - len(refused)

    def _save_range(self, reached: Offsets, ends: Offsets) -> None:
        next_offsets = _as_json(reached, ends)
        self._save({"source": UPLOADS.name, "next": next_offsets, "ends": _as_json(ends, ends)})

    def _save(self, state: dict[str, Any]) -> None:
        self._state.save(state | {"codebook_version": self._codebook_version})

    def close(self) -> None:
        """End what helps; the state file stays."""
        self._coder.close()

    def _finish(self, *, finished: bool) -> None:
        self.done.finished = finished
        if finished:
            self._state.forget()


def _position(message: Message) -> int:
    sent_again = upload_position(message.headers())
    return int(message.offset()) if sent_again is None else sent_again


def _left(next_offsets: Offsets, ends: Offsets) -> int:
    return sum(max(0, end - next_offsets[at]) for at, end in ends.items())


def _as_json(offsets: Offsets, ends: Offsets) -> dict[str, int]:
    """Return offsets by partition, none behind its end."""
    return {str(at[1]): min(offset, ends[at]) for at, offset in sorted(offsets.items())}

"""The operators' commands on the real broker: dead letters, and the path of a video."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import freshet
from infra.errors import DecodeError
from infra.kafka.broker import LocalBroker
from infra.settings import Settings, as_environment
from infra.storage import ObjectStore
from models.codebook import CodebookManifest, publish_codebook
from streams.catalogue import position_header, semantic_id_key, upload_position
from streams.codec import dead_letter
from streams.codes import codes_key, encode_embedding
from streams.events import (
    CodeAllocated,
    CodesComputed,
    SemanticIdAssigned,
    VideoRemoved,
    VideoServable,
    VideoUploaded,
    to_json,
)
from streams.ranges import offsets_at
from streams.topics import (
    ALL,
    ALLOCATIONS,
    ASSIGNMENTS,
    CODES,
    DEAD_LETTERS,
    SEMANTIC_IDS,
    SERVABLE,
    UPLOADS,
    WATCHES,
    Topic,
)
from tests.topic_records import publish, publish_raw, records, settings_with_topics

pytestmark = pytest.mark.integration

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def settings(broker: LocalBroker, tmp_path: Path) -> Settings:
    """Settings with topics and an object store of the test's own."""
    return settings_with_topics(broker, tmp_path)


@pytest.fixture
def run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command line: exit status, and what it printed (on stderr, where it failed)."""
    for name, value in as_environment(settings).items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            freshet.main(list(arguments))
        printed = capsys.readouterr()
        return ended.value.code, printed.err if ended.value.code else printed.out  # type: ignore[return-value]

    return call


def refuse(
    settings: Settings,
    source: Topic,
    value: bytes | None,
    *,
    key: bytes = b"v1",
    reason: str = "invalid_event",
    at: tuple[int, int] = (1, 7),
    sent_again_as: int | None = None,
) -> None:
    """Write a dead letter, as the workers do."""
    letter = dead_letter(source.name, *at, key, value, DecodeError("it is bad", reason))
    headers = {} if sent_again_as is None else position_header(sent_again_as)
    publish_raw(settings, DEAD_LETTERS[source.name], key, to_json(letter), headers=headers)


def test_dead_letters_are_counted_by_topic_and_reason_and_the_newest_named(
    settings: Settings, run: Run
) -> None:
    refuse(settings, UPLOADS, b"1", reason="media_unavailable", at=(0, 4))
    refuse(settings, UPLOADS, b"12", reason="invalid_event", at=(0, 5))
    refuse(settings, WATCHES, b"123", reason="invalid_json", at=(2, 6))
    publish_raw(settings, DEAD_LETTERS[UPLOADS.name], b"k", b"garbage")

    status, printed = run("dead-letters", "list", "--json", "--limit", "3")
    found = json.loads(printed)
    assert status == 0
    assert found["counts"] == {topic.name: {} for topic in DEAD_LETTERS.values()} | {
        "video.uploads.dead_letters": {"media_unavailable": 1, "invalid_event": 1, "unreadable": 1},
        "watch.events.dead_letters": {"invalid_json": 1},
    }
    assert [each["letter"] and each["letter"]["offset"] for each in found["newest"]] == [None, 6, 5]

    _, printed = run("dead-letters", "list", "video.uploads", "--reason", "media_unavailable")
    assert "video.uploads.dead_letters: 1\n  media_unavailable" in printed
    assert "video.uploads 0/4  1 bytes" in printed
    assert "invalid_json" not in printed


def test_one_dead_letter_is_shown_by_its_place(settings: Settings, run: Run) -> None:
    refuse(settings, UPLOADS, b'{"title": "A walk"}')
    (letter,) = records(settings, DEAD_LETTERS[UPLOADS.name])
    at = (str(letter.partition()), str(letter.offset()))
    status, printed = run("dead-letters", "show", "video.uploads", *at)
    assert status == 0
    assert "from      video.uploads 1/7" in printed
    assert '"title": "A walk"' in printed

    status, printed = run("dead-letters", "show", "video.uploads", at[0], "1000")
    assert status == 2
    assert "no record at partition" in printed


def test_replayed_upload_is_what_it_was_where_it_was_with_its_position(
    settings: Settings, run: Run
) -> None:
    refuse(settings, UPLOADS, b'{"late": "media"}', reason="media_unavailable", at=(1, 7))
    refuse(settings, UPLOADS, b'{"late": "media"}', reason="media_unavailable", at=(1, 7))  # killed
    refuse(settings, UPLOADS, None, reason="empty", at=(1, 8))
    refuse(settings, UPLOADS, b"again", reason="media_unavailable", at=(1, 90), sent_again_as=9)

    status, printed = run("dead-letters", "replay", "video.uploads", "--dry-run")
    assert (status, records(settings, UPLOADS)) == (0, [])
    assert "would be sent: 3" in printed

    status, printed = run(
        "dead-letters", "replay", "video.uploads", "--reason", "media_unavailable"
    )
    assert status == 0
    assert "sent: 2" in printed
    assert "refused twice" in printed
    found = [
        (message.partition(), message.key(), message.value(), upload_position(message.headers()))
        for message in records(settings, UPLOADS)
    ]
    assert found == [(1, b"v1", b'{"late": "media"}', 7), (1, b"v1", b"again", 9)]


def test_replayed_codes_go_back_to_their_topic_although_their_letter_lies_with_the_uploads(
    settings: Settings, run: Run
) -> None:
    letter = dead_letter(CODES.name, 2, 5, b"1:2-3", b"codes", DecodeError("full", "codes_full"))
    publish_raw(settings, DEAD_LETTERS[UPLOADS.name], b"1:2-3", to_json(letter))
    assert run("dead-letters", "replay", "video.uploads")[0] == 0
    (message,) = records(settings, CODES)
    assert (message.partition(), message.key(), message.value()) == (2, b"1:2-3", b"codes")
    assert message.headers() is None


def test_dead_letters_of_every_topic_can_be_replayed(settings: Settings, run: Run) -> None:
    by_name = {topic.name: topic for topic in ALL}
    for name in DEAD_LETTERS:
        refuse(settings, by_name[name], name.encode(), at=(0, 1))
        assert run("dead-letters", "replay", name)[0] == 0
    for name in DEAD_LETTERS:
        (message,) = records(settings, by_name[name])
        assert message.value() == name.encode()


def test_one_dead_letter_is_replayed_by_its_place(settings: Settings, run: Run) -> None:
    for number in range(3):
        refuse(settings, WATCHES, str(number).encode(), at=(0, number))
    letters = records(settings, DEAD_LETTERS[WATCHES.name])
    at = (str(letters[1].partition()), str(letters[1].offset()))
    status, _ = run(
        "dead-letters", "replay", "watch.events", "--partition", at[0], "--offset", at[1]
    )
    assert status == 0
    assert [message.value() for message in records(settings, WATCHES)] == [b"1"]


def test_topic_without_dead_letters_is_a_mistake_of_the_users(run: Run) -> None:
    status, printed = run("dead-letters", "replay", "video.counts")
    assert status == 2
    assert "these have: video.uploads" in printed


def test_offsets_at_a_time_are_those_of_what_was_appended_from_then_on(settings: Settings) -> None:
    for number in range(5):
        publish_raw(settings, UPLOADS, b"v1", str(number).encode(), partition=0)
    messages = records(settings, UPLOADS)
    at_ms = messages[2].timestamp()[1]
    first = next(each.offset() for each in messages if each.timestamp()[1] >= at_ms)
    found = offsets_at(settings.kafka, [UPLOADS], at_ms)
    assert found[UPLOADS.name, 0] == first
    assert offsets_at(settings.kafka, [UPLOADS], at_ms + 3_600_000)[UPLOADS.name, 0] == 5
    assert found[UPLOADS.name, 1] == 0


def assigned(
    video_id: str, place: int, direction: tuple[float, ...], **fields: Any
) -> SemanticIdAssigned:
    values: dict[str, Any] = {
        "title": f"About {video_id}", "video_id": video_id, "codes": (3, 1, 2), "disambiguation_code": place,
        "codebook_version": 1, "embedding_f16": encode_embedding(np.array(direction, dtype=np.float16)),
        "upload_time_ms": 1, "upload_append_time_ms": 1, "upload_position": 0, "assigned_time_ms": 1,
    }  # fmt: skip
    return SemanticIdAssigned.model_validate(values | fields)


@pytest.fixture
def traced(settings: Settings) -> Settings:
    """Topics in which the video `cats` has come all the way, and others are near it."""
    empty = CodebookManifest(
        codebook_version=1, codebook_sizes=(16, 8, 4), disambiguation_size=64, embedding_dim=2,
        encoders_sha256="", quantizer={}, card={}, files={},
    )  # fmt: skip
    publish_codebook(ObjectStore(settings.storage.root), empty, {})
    videos = [
        assigned("cats", 0, (1, 0)),
        assigned("dogs", 1, (0.9, 0.1)),
        assigned("space", 0, (0, 1), codes=(9, 1, 2)),
    ]
    at = codes_key(1, (3, 1, 2))
    fields = videos[0].model_dump(
        exclude={"disambiguation_code", "assigned_time_ms", "schema_version"}
    )
    places = [CodeAllocated(codes=(3, 1, 2), codebook_version=1, disambiguation_code=place, video_id=each)
              for place, each in enumerate(["cats", "dogs", "gone"])]  # fmt: skip
    publish(
        settings, (UPLOADS, "cats", VideoUploaded(event_time_ms=1, video_id="cats", title="Cats"))
    )
    publish(settings, (CODES, at, CodesComputed(**fields)))
    for place in places:
        publish_raw(settings, ALLOCATIONS, f"{at}#{place.disambiguation_code}".encode(), to_json(place),
                    partition=records(settings, CODES)[0].partition())  # fmt: skip
    for topic in (ASSIGNMENTS, SEMANTIC_IDS):
        publish(settings, *((topic, semantic_id_key(each.video_id, 1), each) for each in videos))
    servable = VideoServable(video_id="cats", codebook_version=1, semantic_id=(3, 1, 2, 0), replica="r-1",
                             servable_time_ms=1, upload_append_time_ms=1)  # fmt: skip
    publish(settings, (SERVABLE, "cats", servable))
    refuse(settings, UPLOADS, b"{}", key=b"cats", reason="media_unavailable", at=(0, 3))
    return settings


def test_shown_video_has_its_codes_collisions_neighbours_and_path(
    traced: Settings, run: Run
) -> None:
    status, printed = run("sids", "show", "cats")
    assert status == 0
    heading, path = printed.split("path\n")
    assert "cats  About cats\nA3 B1 C2 D0   cluster none   codebook 1" in heading
    assert "place 1  dogs  About dogs  live\n  place 2  gone  no longer" in heading
    near = [
        line.split()[-1] for line in heading.splitlines() if line.strip().startswith(("0.", "1."))
    ]
    assert near == ["dogs", "space"]
    assert [word for line in path.splitlines() for word in line.split() if word in STEPS] == STEPS
    assert "by replica r-1" in path
    assert "media_unavailable" in path
    assert re.search(r" \+\d+\.\d+ s ", path)


STEPS = ["uploaded", "coded", "allocated", "proposed", "assigned", "servable", "refused"]


def test_video_that_was_removed_is_not_live_but_its_path_is_shown(
    traced: Settings, run: Run
) -> None:
    publish(traced, (UPLOADS, "cats", VideoRemoved(event_time_ms=2, video_id="cats")))
    publish_raw(traced, SEMANTIC_IDS, b"1:cats", None, headers=position_header(1))
    status, printed = run("sids", "show", "cats")
    assert status == 0
    assert "not live under codebook 1" in printed
    assert re.search(r"removed +video\.semantic_ids", printed)


def test_video_that_waits_for_its_codes_is_shown_as_far_as_it_got(
    traced: Settings, run: Run
) -> None:
    publish(traced, (UPLOADS, "new", VideoUploaded(event_time_ms=1, video_id="new", title="New")))
    status, printed = run("sids", "show", "new")
    assert status == 0
    assert re.search(r"uploaded +video\.uploads", printed)
    assert "coded" not in printed


def test_unknown_video_is_a_mistake_of_the_users_with_what_was_searched(
    traced: Settings, run: Run
) -> None:
    status, printed = run("sids", "show", "Cats")
    assert status == 2
    assert "no video 'Cats'" in printed
    assert "(kept 7 days)" in printed
    assert "video.semantic_ids all partitions (kept for good)" in printed

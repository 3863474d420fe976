"""What operators see of refused records, and what they do not see."""

from __future__ import annotations

import base64
import json
from collections import Counter

import pytest

from infra.errors import ConfigError
from infra.log import hashed
from streams.events import DeadLetter
from streams.topics import DEAD_LETTERS, WATCHES
from workers.dead_letters import Chosen, Letter, Listed, topics_named
from workers.dead_letters_shown import list_as_json, render_letter, render_list

SIGNED = "https://cleo:secret@media.example/a.mp4?X-Signature=secret"


def letter(
    value: bytes | None, *, topic: str = "video.uploads", key: bytes = b"v1", detail: str = "bad"
) -> Letter:
    encoded = None if value is None else base64.b64encode(value).decode()
    refused = DeadLetter(
        topic=topic,
        partition=1,
        offset=7,
        reason="invalid_event",
        detail=detail,
        key_base64=base64.b64encode(key).decode(),
        value_base64=encoded,
        refused_time_ms=1_700_000_000_000,
    )
    return Letter(
        f"{topic}.dead_letters", 0, 3, 1_700_000_000_500, len(value or b""), refused, None
    )


def test_letter_is_shown_whole_with_where_it_comes_from() -> None:
    shown = render_letter(letter('{"title": "Führung"}'.encode()))
    assert "from      video.uploads 1/7, refused 2023-11-14T22:13:20.000Z" in shown
    assert "key       v1" in shown
    assert '"title": "Führung"' in shown


def test_user_of_a_watch_is_hashed_unless_asked_for() -> None:
    value = json.dumps({"user_id": "cleo", "user": {"region": "NO"}}).encode()
    watch = letter(value, topic=WATCHES.name, key=b"cleo")
    assert "cleo" not in render_letter(watch)
    assert render_letter(watch).count(hashed("cleo")) == 2
    assert '"user_id": "cleo"' in render_letter(watch, raw=True)


def test_value_that_is_no_json_is_dumped_except_where_it_may_name_a_user() -> None:
    value = b'{"user_id": "cleo"\x1b[2J'
    assert "7b 22 75 73 65 72" in render_letter(letter(value))
    assert "--raw" in render_letter(letter(value, topic=WATCHES.name))
    assert "63 6c 65" not in render_letter(letter(value, topic=WATCHES.name))
    assert "63 6c 65" in render_letter(letter(value, topic=WATCHES.name), raw=True)


def test_secrets_in_urls_are_left_out_unless_asked_for() -> None:
    value = json.dumps({"media_uri": SIGNED}).encode()
    one = letter(value, detail=f"media_uri {SIGNED!r} is not there")
    listed = Listed({one.topic: Counter(invalid_event=1)}, [one])
    for shown in (render_letter(one), render_list(listed), json.dumps(list_as_json(listed))):
        assert "secret" not in shown
        assert "media.example/a.mp4" in shown
    assert SIGNED in render_letter(one, raw=True)


def test_letter_cannot_steer_the_terminal() -> None:
    one = letter(b'{"title": "\\u202e\\u009b2J"}', key=b"\x1b[2J", detail="\x1b]0;gone")
    for shown in (render_letter(one, raw=True), render_list(Listed({}, [one]))):
        assert all(char.isprintable() or char == "\n" for char in shown)


def test_record_without_a_value_and_a_letter_that_is_none_are_shown_too() -> None:
    assert "value     0 bytes" in render_letter(letter(None))
    unreadable = letter(None)._replace(letter=None)
    assert "no dead letter" in render_letter(unreadable)
    assert "unreadable" in render_list(Listed({}, [unreadable]))


def test_topic_is_named_by_its_source_or_by_itself() -> None:
    for source, topic in DEAD_LETTERS.items():
        assert topics_named(source) == topics_named(topic.name) == [topic]
    # What the uploads worker refuses of its own goes where its uploads do.
    own = [topics_named(name) for name in ("video.codes", "video.assignments")]
    assert own == 2 * [[DEAD_LETTERS["video.uploads"]]]
    assert topics_named(None) == list(DEAD_LETTERS.values())
    with pytest.raises(
        ConfigError, match=r"'video.servable' has no dead letters; these have: video.uploads"
    ):
        topics_named("video.servable")


def test_offset_without_its_partition_is_refused() -> None:
    with pytest.raises(ConfigError, match="--partition"):
        Chosen(offset=3)

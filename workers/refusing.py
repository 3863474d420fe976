"""Dead letters of the uploads worker; knows nothing of why a record is refused."""

from __future__ import annotations

from typing import Any

from infra import metrics
from infra.errors import DecodeError
from streams.catalogue import POSITION_HEADER
from streams.codec import dead_letter
from streams.events import to_json
from streams.topics import DEAD_LETTERS, UPLOADS, Topic
from workers.faust_app import Outgoing


def refused(topic: Topic, event: Any, error: DecodeError) -> Outgoing:
    """Return the dead letter of a Faust event of `topic`, and count it.

    Those of the internal topics go where their upload's would: operators look there. A record that was sent again
    keeps its first position in its dead letter too.
    """
    message = event.message
    letter = dead_letter(
        topic.name, message.partition, message.offset, message.key, message.value, error
    )
    metrics.RECORDS.labels(topic.name, "refused").inc()
    metrics.DEAD_LETTERS.labels(topic.name, error.reason).inc()
    position = event.headers.get(POSITION_HEADER)
    headers = {} if position is None else {POSITION_HEADER: position}
    return Outgoing(DEAD_LETTERS[UPLOADS.name], message.key, to_json(letter), headers=headers)

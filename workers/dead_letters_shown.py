"""Dead letters as text for people and for programs; knows nothing of where they lie.

User ids are hashed, and what may be secret in a URL is left out, unless asked for.
"""

from __future__ import annotations

import json
from typing import Any

from infra.log import hashed
from infra.printing import masked, printable, utc
from streams.topics import ALL
from workers.dead_letters import Letter, Listed, Replayed, decoded

_OF_USERS = {topic.name for topic in ALL if topic.key == "user_id"}
_HEXDUMP_BYTES = 4096


def render_list(listed: Listed) -> str:
    """Return the list for people."""
    lines = []
    for topic, reasons in listed.counts.items():
        lines.append(f"{topic}: {reasons.total()}")
        lines += [f"  {reason:28} {count}" for reason, count in reasons.most_common()]
    if listed.newest:
        lines.append("newest (partition/offset, appended, reason, where from, bytes, detail)")
    for each in listed.newest:
        at = f"{each.topic} {each.partition}/{each.offset}  {utc(each.append_time_ms)}"
        if (letter := each.letter) is None:
            lines.append(f"  {at}  unreadable")
            continue
        source = f"{letter.topic} {letter.partition}/{letter.offset}"
        detail = masked(letter.detail).splitlines()[0][:160] if letter.detail else ""
        lines.append(f"  {at}  {letter.reason}  {source}  {each.num_bytes} bytes  {detail}")
    return printable("\n".join(lines))


def list_as_json(listed: Listed) -> dict[str, Any]:
    """Return the list for programs."""
    newest = []
    for each in listed.newest:
        letter = each.letter
        record = letter.model_dump(exclude={"key_base64", "value_base64"}) if letter else None
        if record is not None:
            record["detail"] = masked(record["detail"])
        newest.append(
            {
                "topic": each.topic,
                "partition": each.partition,
                "offset": each.offset,
                "append_time_ms": each.append_time_ms,
                "num_bytes": each.num_bytes,
                "letter": record,
            }
        )
    return {
        "counts": {topic: dict(reasons) for topic, reasons in listed.counts.items()},
        "newest": newest,
    }


def render_letter(one: Letter, *, raw: bool = False) -> str:
    """Return a whole dead letter for people; `raw` shows user ids and URLs as they are."""
    lines = [f"{one.topic} {one.partition}/{one.offset}  appended {utc(one.append_time_ms)}"]
    letter = one.letter
    if letter is None:
        return "\n".join([*lines, "this record is no dead letter that this version can read"])
    of_users = letter.topic in _OF_USERS
    key = decoded(letter.key_base64)
    shown_key = "none" if key is None else key.decode(errors="backslashreplace")
    if of_users and key is not None and not raw:
        shown_key = f"{hashed(shown_key)} (hashed; --raw shows it)"
    lines += [
        f"from      {letter.topic} {letter.partition}/{letter.offset}, refused {utc(letter.refused_time_ms)}",
        f"reason    {letter.reason}",
        f"detail    {letter.detail if raw else masked(letter.detail)}",
        f"key       {shown_key}",
        f"value     {one.num_bytes} bytes",
    ]
    value = decoded(letter.value_base64)
    if value:
        lines.append(_shown_value(value, of_users=of_users, raw=raw))
    return printable("\n".join(lines))


def render_replayed(done: Replayed, *, dry_run: bool) -> str:
    """Return what a replay did for people."""
    verb = "would be sent" if dry_run else "sent"
    lines = [f"{verb}: {done.sent.total()}"]
    lines += [
        f"  {topic:24} {reason:28} {count}" for (topic, reason), count in sorted(done.sent.items())
    ]
    if done.repeated:
        lines.append(
            f"{done.repeated} letters were of a record that was refused twice, and is sent once"
        )
    if done.unreadable:
        lines.append(f"{done.unreadable} letters cannot be read by this version, and were left")
    if done.sent and not dry_run:
        lines.append(
            "Sending them again does no harm: an upload keeps its position, so no newer edit is reverted; a watch is "
            "dropped as a redelivery while it is among its user's newest FRESHET_WATCHES__HISTORY_LENGTH."
        )
    return "\n".join(lines)


def _shown_value(value: bytes, *, of_users: bool, raw: bool) -> str:
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        if of_users and not raw:
            return "not JSON, and it may hold a user's id: --raw shows it"
        return _hexdump(value[:_HEXDUMP_BYTES])
    return json.dumps(document if raw else _without_secrets(document), indent=2, ensure_ascii=False)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: hashed(str(item)) if name == "user_id" else _without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def _hexdump(data: bytes) -> str:
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' '):47}  {text}")
    return "\n".join(lines)

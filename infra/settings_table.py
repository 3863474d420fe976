"""The table of all settings, for people; made from the settings themselves, so it cannot differ from them."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from infra.settings import setting_fields


def settings_table() -> str:
    """Return a Markdown table: each variable, its default and its meaning, in the order of the settings."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    rows += [
        f"| `{name}` | {_as_cell(field.default)} | {field.description} |"
        for name, field in setting_fields()
    ]
    return "\n".join(rows)


def _as_cell(default: Any) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, tuple):
        default = "[" + ", ".join(f'"{part}"' for part in default) + "]"
    return "" if default in (None, "") else f"`{default}`"

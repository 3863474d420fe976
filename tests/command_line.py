"""The command line under test: whether a line of words is one that `freshet` accepts, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer.main

import freshet


def tree() -> Any:
    """Return the root of the command tree."""
    return typer.main.get_command(freshet.app)


def accept(words: Sequence[str]) -> None:
    """Parse `words` (what follows `freshet`) down to a command and its arguments; raises what typer would print."""
    command, rest = tree(), list(words)
    while rest and hasattr(command, "commands") and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands"):
        known = ", ".join(command.commands)
        raise ValueError(f"freshet {' '.join(words)} is no command; {command.name} has: {known}")
    if "--help" not in rest:
        command.make_context(command.name, rest)

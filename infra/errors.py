"""Every error a caller may have to act on, named for what the caller should do; knows nothing of who raises it."""

from __future__ import annotations


class FreshetError(Exception):
    """Something Freshet refuses or cannot do; the message names the value and the way out."""


class ConfigError(FreshetError):
    """A setting or the environment is wrong: tell the user, exit with status 2, no traceback."""


class DecodeError(FreshetError):
    """A record or a file is not what it claims to be: dead-letter it and go on.

    Attributes:
        reason: a short constant for the dead letter and the metric label, such as `invalid_json`.
    """

    def __init__(self, message: str, reason: str = "undecodable") -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class VersionMismatchError(FreshetError):
    """Codebook, model, file or hash disagree with what was announced: refuse, keep what works."""


class TransientError(FreshetError):
    """It may work later: retry within a budget."""


class Overloaded(TransientError):  # noqa: N818 - a state of ours, no fault of anyone
    """More is asked than can be answered: answer more cheaply, or say when to come back.

    Attributes:
        waiting: how many wait already.
    """

    def __init__(self, message: str, waiting: int = 0) -> None:
        super().__init__(message, waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        return str(self.args[0])


class GateError(FreshetError):
    """A trained model failed a gate: keep the promoted one.

    Attributes:
        gate: which gate refused it.
    """

    def __init__(self, message: str, gate: str = "unknown") -> None:
        super().__init__(message, gate)
        self.gate = gate

    def __str__(self) -> str:
        return str(self.args[0])

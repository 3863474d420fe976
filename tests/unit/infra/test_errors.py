from __future__ import annotations

import inspect
import pickle

import pytest

from infra import errors
from infra.errors import ConfigError, DecodeError, FreshetError, GateError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, FreshetError)
]


def arguments(cls: type[FreshetError]) -> list[str]:
    """Return one text for each argument that the class names."""
    if cls.__init__ is Exception.__init__:
        return ["what happened"]
    return [f"the {name}" for name in list(inspect.signature(cls.__init__).parameters)[1:]]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_error_crosses_a_process_boundary_with_all_it_says(cls: type[FreshetError]) -> None:
    error = cls(*arguments(cls))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_decode_error_carries_its_reason_beside_the_message() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("not JSON", "invalid_json")))
    assert (str(error), error.reason) == ("not JSON", "invalid_json")


def test_gate_error_carries_its_gate_beside_the_message() -> None:
    error = pickle.loads(pickle.dumps(GateError("recall fell", "anchor_recall")))
    assert (str(error), error.gate) == ("recall fell", "anchor_recall")


def test_one_class_catches_all() -> None:
    with pytest.raises(FreshetError, match="wrong"):
        raise ConfigError("wrong")

from __future__ import annotations

import threading

import pytest

from infra.errors import Overloaded
from serve.turns import Turns


def test_turns_are_taken_by_few_at_once_and_waited_for_by_few() -> None:
    turns = Turns("explanations", at_once=1, waiting_max=1)
    first_has_it, first_may_go = threading.Event(), threading.Event()
    second_had_it = threading.Event()

    def first() -> None:
        with turns.taken():
            first_has_it.set()
            first_may_go.wait(60)

    def second() -> None:
        with turns.taken():
            assert first_may_go.is_set()
            second_had_it.set()

    one = threading.Thread(target=first)
    one.start()
    assert first_has_it.wait(60)
    other = threading.Thread(target=second)
    other.start()
    while turns._places._value:  # until the second waits
        pass
    with pytest.raises(Overloaded, match="1 explanations wait already"), turns.taken():
        pass
    first_may_go.set()
    assert second_had_it.wait(60)
    one.join()
    other.join()
    with turns.taken():
        pass  # everybody has left


def test_turn_is_given_back_by_who_fails() -> None:
    turns = Turns("explanations", at_once=1, waiting_max=0)
    with pytest.raises(ValueError, match="mine"), turns.taken():
        raise ValueError("mine")
    with turns.taken():
        pass

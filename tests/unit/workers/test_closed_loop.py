from __future__ import annotations

from streams.simulated_world import Ask
from workers.closed_loop import chunks_of


def asks(*numbers: int) -> list[Ask]:
    return [Ask(at, at, number, "home") for at, number in enumerate(numbers)]


def chunks(*numbers: int, most: int = 3) -> list[list[int]]:
    return [[ask.number for ask in chunk] for chunk in chunks_of(asks(*numbers), most)]


def test_moments_are_asked_together_in_order_and_all_of_them() -> None:
    assert chunks(1, 2, 3, 4, 5) == [[1, 2, 3], [4, 5]]
    assert chunks() == []


def test_a_viewer_asks_again_only_after_the_answer_before() -> None:
    assert chunks(1, 2, 1, 1, 3) == [[1, 2], [1], [1, 3]]

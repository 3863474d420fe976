"""The search queue, with a model whose passes can be held up so that callers pile up behind one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from infra.errors import Overloaded, TransientError
from models.beam_search import Candidate
from models.lrm import Lrm
from models.prompts import Ask
from models.recommend import Request, recommend
from models.trie import LiveTrie, TrieView
from models.trie_filters import Filters
from serve.search_queue import SearchQueue
from tests.lrm_factories import SPACE, SeenWatch, some_videos, tiny_lrm

VIDEOS = some_videos()
BEAM_WIDTH = 6


class HeldModel:
    """A real model that lets passes through only while open, and notes how many prompts each search began with."""

    def __init__(self, seed: int = 0) -> None:
        self.lrm: Lrm = tiny_lrm(seed)
        self.open, self.searching = threading.Event(), threading.Semaphore(0)
        self.batches: list[int] = []
        self.lrm.model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, _model: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        if keywords["past_key_values"].get_seq_length() == 0:
            self.batches.append(len(keywords["input_ids"]))
            self.searching.release()
            assert self.open.wait(60)


@pytest.fixture
def held() -> HeldModel:
    return HeldModel()


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def queue() -> Iterator[SearchQueue]:
    queue = SearchQueue(beam_width=BEAM_WIDTH, max_batch=4, max_waiting=20)
    yield queue
    queue.close()


def view_without(*video_ids: str) -> TrieView:
    trie = LiveTrie(SPACE)
    for video_id, video in VIDEOS.items():
        if video_id not in video_ids:
            trie.insert(video.semantic_id, video_id, 0)
    return trie.view


EVERYTHING = view_without()


def request(number: int) -> Request:
    watches = [SeenWatch(f"v{at}") for at in range(number % 5)]
    filters = Filters(excluded_video_ids={f"v{number % 24}"})
    return Request(None, watches, Ask("home", query=f"number {number}"), filters)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came true")


def alone(lrm: Lrm, one: Request, view: TrieView, top_k: int) -> list[Candidate]:
    [found] = recommend(lrm, [one], view, VIDEOS, top_k=top_k, beam_width=BEAM_WIDTH)
    return found


def assert_same(found: list[Candidate], expected: list[Candidate]) -> None:
    assert [one.video_id for one in found] == [one.video_id for one in expected]
    scores = [one.log_prob for one in found]
    assert scores == pytest.approx([one.log_prob for one in expected], abs=1e-4)


def test_calls_that_gather_while_another_is_searched_are_searched_together_and_answered_as_alone(
    held: HeldModel, queue: SearchQueue, callers: ThreadPoolExecutor
) -> None:
    asked: list[tuple[Request, TrieView, int]] = [
        (request(number), view_without(f"v{number + 3}") if number % 2 else EVERYTHING, number + 1)
        for number in range(6)
    ]

    def ask(one: Request, view: TrieView, top_k: int) -> list[Candidate]:
        [found] = queue.search(held.lrm, [one], view, VIDEOS, top_k=top_k)
        return found

    first = callers.submit(ask, *asked[0])
    held.searching.acquire()
    rest: list[Future[list[Candidate]]] = []
    for each in asked[1:]:
        rest.append(callers.submit(ask, *each))
        wait_until(lambda: queue.waiting == len(rest))
    held.open.set()
    answers = [answer.result() for answer in (first, *rest)]
    assert held.batches == [1, 4, 1]  # before anybody else asks the model
    for found, (one, view, top_k) in zip(answers, asked, strict=True):
        assert len(found) == top_k
        assert_same(found, alone(held.lrm, one, view, top_k))


def test_calls_of_many_threads_with_several_requests_each_get_their_own_answers(
    held: HeldModel, callers: ThreadPoolExecutor
) -> None:
    held.open.set()
    queue = SearchQueue(beam_width=BEAM_WIDTH, threads=2, max_batch=3, max_waiting=100)

    def ask(number: int) -> list[list[Candidate]]:
        asked = [request(number + part) for part in range(number % 4)]
        views = [view_without(f"v{number % 7}")] * len(asked)
        return queue.search(held.lrm, asked, views, VIDEOS, top_k=5)

    for number, answers in enumerate(callers.map(ask, range(20))):
        assert len(answers) == number % 4
        for part, found in enumerate(answers):
            view = view_without(f"v{number % 7}")
            assert_same(found, alone(held.lrm, request(number + part), view, 5))
    queue.close()


def test_calls_for_another_model_or_a_wider_beam_are_not_searched_together(
    held: HeldModel, queue: SearchQueue, callers: ThreadPoolExecutor
) -> None:
    other = HeldModel(seed=1)
    other.open.set()

    def ask(lrm: Lrm, number: int, top_k: int) -> list[Candidate]:
        [found] = queue.search(lrm, [request(number)], EVERYTHING, VIDEOS, top_k=top_k)
        return found

    begun = callers.submit(ask, held.lrm, 0, 1)
    held.searching.acquire()
    asked = [(held.lrm, 1, 2), (other.lrm, 2, 2), (held.lrm, 3, 9), (held.lrm, 4, 3)]
    rest: list[Future[list[Candidate]]] = []
    for each in asked:
        rest.append(callers.submit(ask, *each))
        wait_until(lambda: queue.waiting == len(rest))
    held.open.set()
    answers = [answer.result() for answer in (begun, *rest)][1:]
    assert (held.batches, other.batches) == ([1, 2, 1], [1])  # before anybody else asks
    for found, (lrm, number, top_k) in zip(answers, asked, strict=True):
        assert_same(found, alone(lrm, request(number), EVERYTHING, top_k))


def test_a_call_beyond_those_that_may_wait_is_refused_at_once_and_the_others_are_answered(
    held: HeldModel, callers: ThreadPoolExecutor
) -> None:
    queue = SearchQueue(beam_width=BEAM_WIDTH, max_waiting=2)

    def ask() -> list[list[Candidate]]:
        return queue.search(held.lrm, [request(0)], EVERYTHING, VIDEOS, top_k=1)

    answers = [callers.submit(ask)]
    held.searching.acquire()
    answers += [callers.submit(ask) for _ in range(2)]
    wait_until(lambda: queue.waiting == 2)
    with pytest.raises(Overloaded) as refused:
        ask()
    assert refused.value.waiting == 2
    held.open.set()
    assert len({answer.result()[0][0].video_id for answer in answers}) == 1
    assert len(ask()) == 1
    queue.close()


def test_an_error_reaches_the_callers_of_its_batch_and_no_other(
    held: HeldModel, queue: SearchQueue, callers: ThreadPoolExecutor
) -> None:
    class Unreadable:
        def __getattr__(self, name: str) -> None:
            raise LookupError(f"no {name}")

    broken = Request(Unreadable(), (), Ask("home"))

    def ask(one: Request, top_k: int) -> list[list[Candidate]]:
        return queue.search(held.lrm, [one], EVERYTHING, VIDEOS, top_k=top_k)

    begun = callers.submit(ask, request(0), 3)
    held.searching.acquire()
    in_its_batch = [callers.submit(ask, one, 3) for one in (request(1), broken, request(2))]
    in_another = callers.submit(ask, request(3), BEAM_WIDTH + 1)
    wait_until(lambda: queue.waiting == 4)
    held.open.set()
    for answer in in_its_batch:
        assert isinstance(answer.exception(), LookupError)
    for answer, number, top_k in ((begun, 0, 3), (in_another, 3, BEAM_WIDTH + 1)):
        assert_same(answer.result()[0], alone(held.lrm, request(number), EVERYTHING, top_k))


def test_close_wakes_all_who_wait_and_lets_the_search_under_way_end(
    held: HeldModel, queue: SearchQueue, callers: ThreadPoolExecutor
) -> None:
    def ask() -> list[list[Candidate]]:
        return queue.search(held.lrm, [request(0)], EVERYTHING, VIDEOS, top_k=1)

    begun = callers.submit(ask)
    held.searching.acquire()
    waiting = [callers.submit(ask) for _ in range(8)]
    wait_until(lambda: queue.waiting == 8)
    closing = callers.submit(queue.close)
    for answer in waiting:
        assert isinstance(answer.exception(), TransientError)
    held.open.set()
    closing.result()
    assert len(begun.result()) == 1
    with pytest.raises(TransientError, match="closed"):
        ask()


def test_a_call_without_a_view_for_each_request_is_refused(
    held: HeldModel, queue: SearchQueue
) -> None:
    with pytest.raises(ValueError, match="each has one"):
        queue.search(held.lrm, [request(0)], [EVERYTHING] * 2, VIDEOS, top_k=1)

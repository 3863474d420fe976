from __future__ import annotations

import random
from collections import Counter

from models.stand_ins import Place, places_for
from streams.shards import PastWatch
from workers.training_actor import Video

VIDEOS = {
    f"v-{number}": Video(semantic_id=(number % 3, number, 0), title="", channel="", topics=())
    for number in range(9)
}


def watches(*numbers: int) -> list[PastWatch]:
    return [PastWatch(f"v-{number}", None, None, 100, 10.0, 0, "home", None) for number in numbers]


ROWS = [watches(0, 1, 3), watches(6, 2), watches(4, 0)]
OF_THE_FIRST_CODE_0 = {Place(0, 0), Place(0, 2), Place(1, 0), Place(2, 1)}


def found(*new: str, count: float, seed: int = 0) -> list[tuple[str, Place]]:
    return places_for(new, ROWS, VIDEOS, count=count, rng=random.Random(seed))


def test_new_video_takes_the_places_of_watched_ones_under_its_first_code() -> None:
    assert {place for _, place in found("v-3", count=9)} == OF_THE_FIRST_CODE_0
    assert {video_id for video_id, _ in found("v-3", count=9)} == {"v-3"}


def test_each_new_video_gets_so_many_and_no_place_twice() -> None:
    drawn = found("v-3", "v-7", count=2)
    assert Counter(video_id for video_id, _ in drawn) == {"v-3": 2, "v-7": 2}
    assert len(set(drawn)) == 4
    every = {place for seed in range(50) for _, place in found("v-3", count=1, seed=seed)}
    assert every == OF_THE_FIRST_CODE_0


def test_part_of_a_place_is_a_probability() -> None:
    mean = sum(len(found("v-3", count=0.25, seed=seed)) for seed in range(400)) / 400
    assert 0.18 < mean < 0.32


def test_what_nothing_watched_is_like_and_what_is_gone_get_none() -> None:
    assert found("unheard of", count=5) == []
    assert places_for(["v-5"], [watches(0)], VIDEOS, count=5, rng=random.Random(0)) == []
    assert found("v-3", count=0) == []

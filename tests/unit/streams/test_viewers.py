from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streams.viewers import Mood, Sight, Viewer, Visit, draw_of, draw_viewers, visit, worth
from tests.viewer_factories import HOUR_MS, NOON_MS, NOTHING, TOPICS, shares, sight, video, viewer

PLACES, VISITS = 10, 400


def visits(
    slate: list[Sight], who: Viewer | None = None, *, mood: Mood = NOTHING, **fields: Any
) -> list[Visit]:
    """What comes of one slate over and over, each time with other random numbers."""
    known: dict[str, Any] = {"now_ms": NOON_MS, "seen": ()} | fields
    return [
        visit(
            who or viewer(),
            mood,
            slate,
            random_numbers=np.random.default_rng(number).random((len(slate), 4)),
            **known,
        )
        for number in range(VISITS)
    ]


def clicks(slate: list[Sight], who: Viewer | None = None, **fields: Any) -> float:
    return float(np.mean([len(one.watches) for one in visits(slate, who, **fields)]))


def test_same_numbers_give_the_same_watches_and_others_give_others() -> None:
    slate = [sight(video(number)) for number in range(PLACES)]
    first, again = ([one.watches for one in visits(slate)] for _ in range(2))
    assert first == again
    assert len({tuple(one.place for one in each.watches) for each in visits(slate)}) > 10


def test_clicks_fall_from_place_to_place() -> None:
    same = video(1)
    slate = [sight(same) for _ in range(PLACES)]
    at = np.zeros(PLACES)
    for one in visits(slate, viewer(fatigue=0.0)):
        for watched in one.watches:
            at[watched.place] += 1
    assert at[0] > at[3] > at[6] > at[9] > 0
    assert at[9] < 0.6 * at[0]


def test_who_has_no_patience_looks_at_the_first_place_alone() -> None:
    slate = [sight(video(number)) for number in range(PLACES)]
    assert {one.looked for one in visits(slate, viewer(patience=0.0))} == {1}
    assert {one.looked for one in visits(slate, viewer(patience=1.0))} == {PLACES}


def test_videos_to_ones_taste_are_clicked_more_watched_longer_and_liked_more() -> None:
    liked, other = [
        [sight(video(number, topics)) for number in range(PLACES)]
        for topics in (shares(0.5, 0.5), shares(0, 0, 1))
    ]
    assert clicks(liked) > 3 * clicks(other)
    found = {
        name: [watched for one in visits(slate) for watched in one.watches]
        for name, slate in (("liked", liked), ("other", other))
    }
    share = {name: np.mean([one.share for one in some]) for name, some in found.items()}
    likes = {name: np.mean([one.liked for one in some]) for name, some in found.items()}
    assert share["liked"] > 1.5 * share["other"]
    assert likes["liked"] > 2 * likes["other"]


def test_better_videos_are_worth_more_to_everybody() -> None:
    assert worth(viewer(), NOTHING, video(1, quality=2)) > worth(viewer(), NOTHING, video(1))


def test_novelty_seekers_click_what_is_new_and_it_wears_off() -> None:
    slates = [[sight(video(number), age_h=age_h) for number in range(3)] for age_h in (1, 30, 999)]
    seeker = viewer(novelty=2.0)
    new, older, old = (clicks(slate, seeker) for slate in slates)
    assert new > 1.3 * older > 1.3 * old * 0.9
    assert clicks(slates[0]) == clicks(slates[2])  # nobody else cares


def test_what_everybody_watches_draws_those_whom_it_moves() -> None:
    unknown, known = ([sight(video(1), views=views)] for views in (0, 99))
    follower = viewer(popularity=2.0)
    assert clicks(known, follower) > 1.3 * clicks(unknown, follower)
    assert clicks(known) == clicks(unknown)
    assert draw_of(follower, sight(video(1), views=99), NOON_MS) == pytest.approx(2.0)


def test_novelty_and_popularity_make_people_click_and_not_stay() -> None:
    dull = [sight(video(1, shares(0, 0, 1)), age_h=0, views=99)]
    drawn, unmoved = viewer(novelty=3.0, popularity=3.0), viewer()
    assert clicks(dull, drawn) > 5 * clicks(dull, unmoved)
    assert worth(drawn, NOTHING, dull[0].video) == worth(unmoved, NOTHING, dull[0].video)
    stays = [one.share for each in visits(dull, drawn) for one in each.watches]
    assert np.mean(stays) < 0.4


def test_more_of_a_topic_tires_of_it_alone_and_rest_helps() -> None:
    tired = viewer(fatigue=2.0)
    full = NOTHING.after(video(1), 1.0).after(video(2), 1.0)
    art, ball = video(3), video(3, shares(0, 1))
    assert worth(tired, full, art) == pytest.approx(worth(tired, NOTHING, art) - 4)
    assert worth(tired, full, ball) == worth(tired, NOTHING, ball)
    rested = full.at(NOON_MS + 24 * HOUR_MS)
    assert worth(tired, rested, art) == pytest.approx(worth(tired, NOTHING, art), abs=0.01)


def test_a_slate_of_one_topic_tires_within_itself() -> None:
    slate = [sight(video(number)) for number in range(PLACES)]
    assert clicks(slate, viewer(fatigue=3.0)) < 0.8 * clicks(slate, viewer())


def test_visit_leaves_the_mood_that_its_watches_make() -> None:
    slate = [sight(video(number)) for number in range(PLACES)]
    for one in visits(slate, mood=NOTHING):
        had = sum(watched.share for watched in one.watches)
        assert one.mood.had.tolist() == pytest.approx([had, 0, 0, 0])
        assert one.mood.at_ms == NOON_MS


def test_nothing_is_watched_twice() -> None:
    slate = [sight(video(number)) for number in range(PLACES)]
    found = visits(slate, viewer(patience=1.0), seen={"v-0", "v-1"})
    places = {watched.place for one in found for watched in one.watches}
    assert places == set(range(2, PLACES))


def test_whims_are_a_viewers_own_and_stay() -> None:
    of_ann, of_bob = (
        [worth(viewer(name), NOTHING, video(n)) for n in range(200)] for name in ("ann", "bob")
    )
    assert of_ann == [worth(viewer("ann"), NOTHING, video(number)) for number in range(200)]
    assert abs(np.corrcoef(of_ann, of_bob)[0, 1]) < 0.3


def test_drawn_viewers_have_tastes_of_their_own_and_are_the_same_again() -> None:
    some, more = (draw_viewers(count, len(TOPICS), seed=3) for count in (20, 30))
    assert [one.name for one in some] == [one.name for one in more[:20]]
    assert all(np.array_equal(a.tastes, b.tastes) for a, b in zip(some, more, strict=False))
    assert all(one.tastes.sum() == pytest.approx(1) for one in some)
    assert len({int(one.tastes.argmax()) for one in more}) == len(TOPICS)
    other = draw_viewers(1, len(TOPICS), seed=4)[0]
    assert not np.array_equal(other.tastes, some[0].tastes)

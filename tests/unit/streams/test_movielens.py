from __future__ import annotations

import csv
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from infra.errors import ConfigError
from streams.events import VideoUploaded, WatchEvent
from streams.movielens import FOLDER, load_timeline, readable_title
from streams.timeline import Timeline, split

MINUTE = 60
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return load_timeline()


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def small(
    folder: Path,
    *,
    movies: list[str],
    ratings: list[tuple[int, int, float, int]],
    tags: list[tuple[int, int, str, int]],
) -> Timeline:
    """Load a data set of a few lines."""
    lines = {
        "movies.csv": ["movieId,title,genres", *movies],
        "ratings.csv": [
            "userId,movieId,rating,timestamp",
            *(",".join(map(str, r)) for r in ratings),
        ],
        "tags.csv": ["userId,movieId,tag,timestamp", *(",".join(map(str, t)) for t in tags)],
    }
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content), encoding="utf-8")
    return load_timeline(folder)


def updates(timeline: Timeline) -> list[tuple[int, tuple[str, ...]]]:
    return [(e.event_time_ms // 1000, e.tags) for e in timeline.uploads() if e.type == "updated"]


T = 1_000_000
MOVIE = ["1,Heat (1995),Action|Crime"]


def test_whole_data_set_becomes_events_none_lost(timeline: Timeline) -> None:
    assert timeline.counts() == {"watched": 100_836, "uploaded": 9_742, "updated": 1_794}
    ids = [each.event.event_id for each in timeline.events]
    assert len(set(ids)) == len(ids)


def test_events_are_in_the_order_of_event_time(timeline: Timeline) -> None:
    times = [each.event_time_ms for each in timeline.events]
    assert times == sorted(times)
    assert all(each.event_time_ms == each.event.event_time_ms for each in timeline.events)


def test_second_load_gives_the_same_timeline(timeline: Timeline) -> None:
    assert load_timeline() == timeline


def test_no_update_knows_a_tag_before_it_was_given(timeline: Timeline) -> None:
    given: dict[tuple[str, str], int] = {}
    for row in rows("tags.csv"):
        at = (f"ml-{row['movieId']}", row["tag"].strip().casefold())
        given[at] = min(int(row["timestamp"]) * 1000, given.get(at, 10**15))
    seen = set()
    for event in timeline.uploads():
        assert event.type == "updated" or event.tags == ()
        for tag in event.tags:
            assert given[event.video_id, tag.casefold()] <= event.event_time_ms
            seen.add((event.video_id, tag.casefold()))
    assert seen == set(given)


def test_no_event_names_a_video_before_its_upload(timeline: Timeline) -> None:
    uploaded: set[str | None] = {None}
    for each in timeline.events:
        if isinstance(each.event, VideoUploaded) and each.event.type == "uploaded":
            uploaded.add(each.event.video_id)
        assert each.event.video_id in uploaded
        if isinstance(each.event, WatchEvent):
            assert each.event.context_video_id in uploaded


def test_video_is_uploaded_a_day_before_its_first_rating(timeline: Timeline) -> None:
    first: dict[str, int] = {}
    for watch in timeline.watches():
        first.setdefault(watch.video_id, watch.event_time_ms)
    uploads = {e.video_id: e.event_time_ms for e in timeline.uploads() if e.type == "uploaded"}
    assert len(uploads) - len(first) == 18
    assert all(uploads[video_id] == time_ms - DAY_MS for video_id, time_ms in first.items())


def test_watch_next_follows_the_users_previous_watch_within_the_sitting(timeline: Timeline) -> None:
    by_user = defaultdict(list)
    for watch in timeline.watches():
        by_user[watch.user_id].append(watch)
    assert len(by_user) == 610
    for watches in by_user.values():
        assert watches[0].surface == "home"
        for previous, watch in pairwise(watches):
            same_sitting = watch.event_time_ms - previous.event_time_ms <= 30 * MINUTE * 1000
            assert watch.surface == ("watch_next" if same_sitting else "home")
            assert watch.context_video_id == (previous.video_id if same_sitting else None)


def test_sitting_ends_after_thirty_minutes_and_equal_times_keep_the_files_order(
    tmp_path: Path,
) -> None:
    movies = [f"{movie_id},M (2000),Drama" for movie_id in (1, 2, 3, 4)]
    times = {1: T, 2: T, 3: T + 30 * MINUTE, 4: T + 60 * MINUTE + 1}
    ratings = [(1, movie_id, 3.0, time_s) for movie_id, time_s in times.items()]
    watches = small(tmp_path, movies=movies, ratings=ratings, tags=[]).watches()
    assert [(w.video_id, w.surface, w.context_video_id) for w in watches] == [
        ("ml-1", "home", None),
        ("ml-2", "watch_next", "ml-1"),
        ("ml-3", "watch_next", "ml-2"),
        ("ml-4", "home", None),
    ]


@pytest.mark.parametrize(
    ("rating", "watched_s", "liked"),
    [(0.5, 600.0, False), (2.5, 3000.0, False), (4.0, 4800.0, False), (4.5, 5400.0, True)],
)
def test_rating_gives_the_watched_share_and_the_like(
    tmp_path: Path, rating: float, watched_s: float, liked: bool
) -> None:
    [watch] = small(tmp_path, movies=MOVIE, ratings=[(7, 1, rating, T)], tags=[]).watches()
    assert (watch.user_id, watch.watched_s, watch.duration_s) == ("ml-7", watched_s, 6000.0)
    assert watch.liked is liked


def test_upload_carries_title_and_genres_and_nothing_invented(tmp_path: Path) -> None:
    movies = ['1,"Matrix, The (1999)",Action|Sci-Fi', "2,Cosmos,(no genres listed)"]
    ratings = [(1, 1, 3.0, T), (1, 2, 3.0, T)]
    matrix, cosmos = small(tmp_path, movies=movies, ratings=ratings, tags=[]).uploads()
    assert (matrix.title, matrix.category) == ("The Matrix (1999)", "Action")
    assert matrix.topics == ("Action", "Sci-Fi")
    assert (cosmos.title, cosmos.category, cosmos.topics) == ("Cosmos", "", ())
    assert (matrix.description, matrix.channel, matrix.duration_s) == ("", "", None)


def test_tags_of_one_users_sitting_are_one_update_at_the_last_ones_time(tmp_path: Path) -> None:
    tags = [(1, 1, "slow", T + 60), (1, 1, "tense", T), (1, 1, "loud", T + 31 * MINUTE + 60)]
    found = updates(small(tmp_path, movies=MOVIE, ratings=[(1, 1, 3.0, T)], tags=tags))
    assert found == [
        (T + 60, ("tense", "slow")),
        (T + 31 * MINUTE + 60, ("tense", "slow", "loud")),
    ]


def test_update_that_adds_no_tag_is_left_out(tmp_path: Path) -> None:
    tags = [(1, 1, "Tense", T), (2, 1, "tense", T + 100)]
    found = updates(small(tmp_path, movies=MOVIE, ratings=[(1, 1, 3.0, T)], tags=tags))
    assert found == [(T, ("Tense",))]


def test_tag_from_before_the_upload_comes_right_after_it(tmp_path: Path) -> None:
    ratings, tags = [(1, 1, 3.0, T)], [(2, 1, "tense", T - 500_000)]
    events = small(tmp_path, movies=MOVIE, ratings=ratings, tags=tags).events
    assert [each.kind for each in events] == ["uploaded", "updated", "watched"]
    assert events[0].event_time_ms == events[1].event_time_ms == T * 1000 - DAY_MS


def test_video_that_nobody_rated_is_uploaded_a_day_before_its_first_tag(tmp_path: Path) -> None:
    events = small(tmp_path, movies=MOVIE, ratings=[], tags=[(1, 1, "tense", T)]).events
    assert [each.event_time_ms for each in events] == [T * 1000 - DAY_MS, T * 1000]


@pytest.mark.parametrize(
    ("title", "readable"),
    [
        ("Toy Story (1995)", "Toy Story (1995)"),
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Hate (Haine, La) (1995)", "Hate (La Haine) (1995)"),
        (
            "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
            "The City of Lost Children (La Cité des enfants perdus) (1995)",
        ),
        ("Bear, The (Ours, L') (1988)", "The Bear (L'Ours) (1988)"),
        ("Seven (a.k.a. Se7en) (1995)", "Seven (a.k.a. Se7en) (1995)"),
        ("Big One (a.k.a. Other, The) (1999)", "Big One (a.k.a. The Other) (1999)"),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly (1966)"),
        ("Paris, Texas (1984)", "Paris, Texas (1984)"),
        ("I, Robot (2004)", "I, Robot (2004)"),
        ("Runaway Brain (1995) ", "Runaway Brain (1995)"),
        ("Death Note (2006–2007)", "Death Note (2006–2007)"),
        ("Babylon 5", "Babylon 5"),
    ],
)
def test_title_reads_as_people_write_it(title: str, readable: str) -> None:
    assert readable_title(title) == readable


def test_missing_file_is_refused_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ratings\.csv is missing; MovieLens"):
        load_timeline(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_split_cuts_behind_the_watch_that_completes_the_share(
    timeline: Timeline, share: float
) -> None:
    earlier, later = split(timeline, share)
    assert earlier.events + later.events == timeline.events
    assert earlier.counts()["watched"] == round(share * 100_836)
    if earlier.events and later.events:
        assert earlier.events[-1].kind == "watched"


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_split_at_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        split(Timeline(()), share)

from __future__ import annotations

from collections.abc import Sequence

import pytest

from infra.errors import ConfigError
from infra.settings import Settings
from streams.events import VideoUploaded, WatchEvent
from streams.timeline import Timeline, on_timeline
from workers.bootstrap_data import (
    DataSet,
    catalogue_of,
    co_watched,
    labels_of,
    later_part,
    load_data,
    pair_rows,
    split_catalogue,
)


def upload(
    video_id: str, time_ms: int = 0, *, topics: tuple[str, ...] = (), **values: str
) -> VideoUploaded:
    return VideoUploaded(
        event_time_ms=time_ms, video_id=video_id, title=video_id, topics=topics, **values
    )


def watch(user_id: str, video_id: str, time_ms: int = 0) -> WatchEvent:
    return WatchEvent(
        event_time_ms=time_ms,
        user_id=user_id,
        video_id=video_id,
        surface="home",
        watched_s=1.0,
        duration_s=1.0,
    )


def timeline(*events: VideoUploaded | WatchEvent) -> Timeline:
    return Timeline(tuple(map(on_timeline, events)))


WHOLE = timeline(
    upload("a", 1),
    watch("u", "a", 2),
    upload("b", 3),
    watch("u", "b", 4),
    upload("a", 5, type="updated", description="newer"),
    upload("c", 6),
    watch("u", "c", 7),
    watch("u", "a", 8),
)


def test_catalogue_is_cut_before_the_upload_of_the_first_video_held_out() -> None:
    earlier, later = split_catalogue(WHOLE, 2 / 3)
    assert earlier.events + later.events == WHOLE.events
    assert [each.video_id for each in catalogue_of(earlier)] == ["a", "b"]
    assert len(earlier.watches()) == 2
    assert later.events[0].event.video_id == "c"


@pytest.mark.parametrize(("share", "num_earlier"), [(0.0, 0), (0.34, 2), (1.0, 8)])
def test_share_of_the_catalogue_counts_videos_and_not_events(
    share: float, num_earlier: int
) -> None:
    assert len(split_catalogue(WHOLE, share)[0].events) == num_earlier


def test_later_part_holds_out_only_videos_that_were_not_known_before() -> None:
    earlier, rest = split_catalogue(WHOLE, 1 / 3)
    later = later_part(DataSet("movielens", WHOLE), earlier, rest)
    assert [each.video_id for each in later.held_out] == ["b", "c"]
    assert [each.video_id for each in later.watches] == ["b", "c", "a"]


def test_co_watched_videos_are_neighbours_in_one_users_order() -> None:
    watches = [
        watch("u", "a"), watch("v", "x"), watch("u", "b"), watch("u", "b"), watch("u", "c"),
        watch("v", "y"),
    ]  # fmt: skip
    assert list(co_watched(watches)) == [("a", "b"), ("b", "c"), ("x", "y")]


def test_pairs_with_a_video_that_has_no_row_are_left_out() -> None:
    watches = [watch("u", each) for each in "abcab"]
    assert pair_rows(watches, ["a", "b"]).tolist() == [[0, 1], [0, 1]]
    assert pair_rows([], ["a"]).shape == (0, 2)


def test_label_is_the_whole_category_and_unknown_where_there_is_none() -> None:
    uploads: Sequence[VideoUploaded] = [
        upload("a", topics=("Makeup", "Nails"), category="Nail Polish"),
        upload("b", topics=("Makeup", "Nails"), category="Nail Polish"),
        upload("c", topics=("Makeup",), category="Nails"),
        upload("d"),
    ]
    one, other, shorter, none = labels_of(uploads, None).tolist()
    assert one == other != shorter
    assert none == -1
    assert shorter >= 0


def test_label_given_beside_the_uploads_takes_the_place_of_their_own() -> None:
    uploads = [upload("a", category="Film"), upload("b", category="Film"), upload("c")]
    labels = labels_of(uploads, {"a": "Music", "c": "Music"})
    assert labels[0] == labels[2] >= 0
    assert labels[1] == -1


def test_card_says_whether_the_codebook_has_seen_the_categories() -> None:
    seen = later_part(DataSet("beauty", WHOLE), WHOLE, timeline())
    unseen = later_part(DataSet("youtube", WHOLE, {}), WHOLE, timeline())
    assert "; part of the embedded text" in seen.notes["category"]
    assert "; no part of the embedded text" in unseen.notes["category"]


@pytest.mark.parametrize(
    ("name", "setting"),
    [("beauty", "FRESHET_DATA__BEAUTY"), ("youtube", "FRESHET_DATA__YOUTUBE_TRENDING")],
)
def test_data_set_without_its_folder_is_refused_by_the_settings_name(
    name: str, setting: str
) -> None:
    with pytest.raises(ConfigError, match=setting):
        load_data(name, Settings())


def test_unknown_data_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="there are movielens, beauty, youtube"):
        load_data("sports", Settings())

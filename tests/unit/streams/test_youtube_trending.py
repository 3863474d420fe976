from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.settings import Settings, with_values
from streams.youtube_trending import TrendingVideos, load_trending

HEADER = (
    "video_id,trending_date,title,channel_title,category_id,publish_time,tags,views,likes,dislikes,comment_count,"
    "thumbnail_link,comments_disabled,ratings_disabled,video_error_or_removed,description"
)


def row(
    video_id: str = "aaaaaaaaaaa",
    *,
    day: str = "17.14.11",
    title: str = "A tune",
    category_id: str = "10",
    published: str = "2017-11-13T17:13:01.000Z",
    tags: str = 'tune|"second tag"|"third"',
    description: str = "Line one\\nline two",
) -> str:
    return (
        f'{video_id},{day},"{title}","A channel",{category_id},{published},"'
        + tags.replace('"', '""')
        + f'",1,2,3,4,https://i.example/default.jpg,False,False,False,"{description}"'
    )


def small(
    folder: Path,
    *,
    us: list[str],
    fr: list[str] | None = None,
    categories: str = "10,Music\n20, Gaming\n",
) -> TrendingVideos:
    """Load a data set of a few rows."""
    (folder / "USvideos.csv").write_bytes("\r\n".join([HEADER, *us]).encode())
    (folder / "FRvideos.csv").write_text("\n".join([HEADER, *(fr or [])]), encoding="utf-8")
    (folder / "youtube_video_categories.csv").write_text(categories, encoding="utf-8")
    return load_trending(with_values(Settings(), data__youtube_trending=folder))


def test_video_becomes_an_upload_at_its_publish_time(tmp_path: Path) -> None:
    found = small(tmp_path, us=[row()])
    (upload,) = found.timeline.uploads()
    assert upload.video_id == "yt-aaaaaaaaaaa"
    assert upload.event_time_ms == 1_510_593_181_000
    assert (upload.title, upload.channel) == ("A tune", "A channel")
    assert upload.tags == ("tune", "second tag", "third")
    assert upload.description == "Line one\nline two"


def test_category_is_kept_beside_the_upload_and_never_in_it(tmp_path: Path) -> None:
    found = small(tmp_path, us=[row(category_id="20")])
    (upload,) = found.timeline.uploads()
    assert found.categories == {"yt-aaaaaaaaaaa": "Gaming"}
    assert "Gaming" not in upload.model_dump_json()
    assert (upload.category, upload.topics) == ("", ())


def test_video_that_trended_for_days_in_both_countries_is_one_upload_of_its_newest_state(
    tmp_path: Path,
) -> None:
    us = [row(day="17.30.11", title="Third"), row(day="17.02.11", title="First")]
    found = small(tmp_path, us=us, fr=[row(day="17.15.11", title="Second")])
    assert [upload.title for upload in found.timeline.uploads()] == ["Third"]


def test_uploads_are_in_the_order_of_publication(tmp_path: Path) -> None:
    us = [row("bbbbbbbbbbb", published="2017-11-13T00:00:00.000Z")]
    fr = [row("aaaaaaaaaaa", published="2016-01-01T00:00:00.000Z"), row("ccccccccccc")]
    found = small(tmp_path, us=us, fr=fr)
    assert [upload.video_id[-1] for upload in found.timeline.uploads()] == ["a", "b", "c"]


def test_video_without_tags_has_none(tmp_path: Path) -> None:
    (upload,) = small(tmp_path, us=[row(tags="[none]")]).timeline.uploads()
    assert upload.tags == ()


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("only,three,columns", "3 columns, expected 16"),
        (row("bbbbbbbbbbb", category_id="99"), "category_id '99' has no name"),
        (row("bbbbbbbbbbb", published="13 November"), "Invalid isoformat"),
        (row("bbbbbbbbbbb", published="2017-11-13T17:13:01"), "has no time zone"),
        (row("bbbbbbbbbbb", day="2017-11-14"), "not enough values"),
        (row(""), "video_id: String should have at least 1 character"),
    ],
)
def test_malformed_row_is_left_out_and_named(tmp_path: Path, bad: str, problem: str) -> None:
    found = small(tmp_path, us=[row(), bad])
    assert len(found.timeline.events) == 1
    (said,) = found.malformed
    assert said.startswith("USvideos.csv row 3: ")
    assert problem in said


def test_byte_that_is_not_utf8_spoils_no_other_row(tmp_path: Path) -> None:
    small(tmp_path, us=[row()])
    content = (tmp_path / "USvideos.csv").read_bytes().replace(b"A tune", b"A t\xfcne")
    (tmp_path / "USvideos.csv").write_bytes(content)
    found = load_trending(with_values(Settings(), data__youtube_trending=tmp_path))
    assert [upload.title for upload in found.timeline.uploads()] == ["A t\ufffdne"]


def test_file_without_the_columns_is_refused_by_name(tmp_path: Path) -> None:
    small(tmp_path, us=[])
    (tmp_path / "FRvideos.csv").write_text("video_id,title\n")
    settings = with_values(Settings(), data__youtube_trending=tmp_path)
    with pytest.raises(ConfigError, match=r"FRvideos\.csv .*FRESHET_DATA__.*no columns trending"):
        load_trending(settings)


def test_bad_category_is_refused_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"youtube_video_categories\.csv in .*row 2"):
        small(tmp_path, us=[], categories="10,Music\nGaming\n")


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    settings = with_values(Settings(), data__youtube_trending=tmp_path)
    with pytest.raises(ConfigError, match=r"categories\.csv is missing in .*YOUTUBE_TRENDING"):
        load_trending(settings)


def test_unset_folder_is_refused_with_the_setting_that_names_it() -> None:
    with pytest.raises(ConfigError, match="FRESHET_DATA__YOUTUBE_TRENDING is not set"):
        load_trending(Settings())

"""Every clause of a sentence is looked up in the catalogue, the history and the counts that it was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.explanations import (
    CO_WATCHES_MIN,
    PERCENT_MIN,
    TITLE_CHARS_MAX,
    Evidence,
    Explanation,
    explain,
)
from tests.lrm_factories import SeenWatch, tiny_lrm
from workers.training_actor import Video

TARGET = "v0"


class Near(NamedTuple):
    video_id: str


class Speaker(NamedTuple):
    language: str | None = None
    region: str | None = None
    age: int | None = None
    gender: str | None = None
    device: str | None = None


def video(
    number: int, title: str | None = None, topics: tuple[str, ...] = (), channel: str = "", language: str = ""
) -> Video:  # fmt: skip
    title = f"Title {number}" if title is None else title
    return Video((number, 0, 0, 0), title, channel, topics, language)


def told(
    videos: dict[str, Video],
    watches: Sequence[SeenWatch] = (),
    *,
    viewer: Speaker | None = None,
    co_watched: Sequence[tuple[str, int]] = (),
    neighbours: Sequence[Near] = (),
) -> Explanation:
    return explain(
        tiny_lrm(), videos[TARGET], viewer, watches, videos, co_watched=co_watched, neighbours=neighbours,
    )  # fmt: skip


JAZZ = {
    "v0": video(0, topics=("jazz", "piano"), channel="Club"),
    "v1": video(1, topics=("Jazz", "live")),
    "v2": video(2, topics=("jazz",)),
    "v3": video(3, topics=("chess",), channel="Club"),
}


def test_topics_shared_with_watched_videos_come_first() -> None:
    found = told(
        JAZZ,
        [SeenWatch("v1"), SeenWatch("v2"), SeenWatch("v3")],
        co_watched=[("v3", 9)],
        neighbours=[Near("v2")],
    )
    assert found == Explanation(
        "Because you watched “Title 2” and “Title 1”, which are about jazz too.",
        "template",
        Evidence("shared_topics", ("v2", "v1"), ("jazz",)),
    )


def test_one_video_with_more_topics_in_common_stands_alone() -> None:
    videos = JAZZ | {"v4": video(4, topics=("piano", "jazz"))}
    found = told(videos, [SeenWatch("v4"), SeenWatch("v2")])
    assert found.text == "Because you watched “Title 4”, which is about jazz and piano too."


def test_co_watches_come_before_the_channel() -> None:
    found = told(JAZZ, [SeenWatch("v3")], co_watched=[("v2", 5), ("v3", 4)])
    assert found.text == "People who watched “Title 3”, as you did, went on to this."
    assert found.evidence == Evidence("co_watches_of_watched", ("v3",), count=4)


def test_channel_comes_before_neighbours() -> None:
    found = told(JAZZ, [SeenWatch("v3")], neighbours=[Near("v3")])
    assert found.text == "It is from Club, as is “Title 3”, which you watched."


def test_neighbours_come_before_what_others_did() -> None:
    videos = JAZZ | {"v4": video(4)}
    found = told(
        videos, [SeenWatch("v4")], neighbours=[Near("v2"), Near("v4")], co_watched=[("v2", 3)]
    )
    assert found.text == "Because you watched “Title 4”, one of the nearest to this in content."


def test_viewer_without_history_hears_what_others_did() -> None:
    assert (
        told(JAZZ, co_watched=[("v2", 3)]).text == "People who watched “Title 2” went on to this."
    )


def test_viewer_without_history_hears_what_the_video_is_about() -> None:
    assert told(JAZZ, co_watched=[("v2", CO_WATCHES_MIN - 1)]).text == "It is about jazz and piano."
    french = JAZZ | {TARGET: JAZZ[TARGET]._replace(language="fr")}
    assert told(french, viewer=Speaker("fr")).text == (
        "It is in your language and about jazz and piano."
    )
    assert told(french, viewer=Speaker("en")).text == "It is about jazz and piano."


def test_video_of_which_nothing_is_known_has_a_sentence() -> None:
    assert told({TARGET: video(0, "Only a title")}).text == "It is called “Only a title”."
    assert told({TARGET: video(0, " ")}) == Explanation(
        "Nothing is known of it yet.", "template", Evidence("nothing")
    )


def test_video_left_early_is_no_reason() -> None:
    assert told(JAZZ, [SeenWatch("v2", percent=PERCENT_MIN - 1)]).evidence.kind == "topics"


def test_removed_video_is_not_named() -> None:
    found = told(JAZZ, [SeenWatch("gone")], co_watched=[("gone", 9)], neighbours=[Near("gone")])
    assert found.evidence.kind == "topics"


def test_title_is_one_line_without_markup_and_not_too_long() -> None:
    videos = JAZZ | {"v2": video(2, "<b>A\n“long”</b> " + "x" * 200, ("jazz",))}
    text = told(videos, [SeenWatch("v2")]).text
    assert text.startswith('Because you watched “(b)A "long"(/b) xxx')
    assert len(text) < TITLE_CHARS_MAX + 60
    assert "…”, which is about jazz too." in text


def test_explanation_needs_no_model() -> None:
    assert explain(None, JAZZ[TARGET], None, [], JAZZ).text == "It is about jazz and piano."


WORDS = st.sampled_from(["jazz", "Jazz", "piano", "chess", " ", "street food"])
VIDEOS = st.builds(
    lambda title, topics, channel, language: Video((0,), title, channel, tuple(topics), language),
    st.sampled_from(["Alpha", "Beta", "Gamma", "Delta <x>", "", "“Eps”"]),
    st.lists(WORDS, max_size=4, unique=True),
    st.sampled_from(["", "Club", "Other"]),
    st.sampled_from(["", "en", "fr"]),
)
IDS = st.sampled_from([f"v{number}" for number in range(8)])
WATCHES = st.lists(st.builds(SeenWatch, IDS, st.integers(0, 100)), max_size=6)


def shown(video: Video) -> str:
    return " ".join(
        video.title.replace("<", "(").replace(">", ")").replace("“", '"').replace("”", '"').split()
    )


def folded(video: Video) -> set[str]:
    return {topic.strip().casefold() for topic in video.topics}


def check_clauses(
    found: Explanation,
    videos: dict[str, Video],
    watches: Sequence[SeenWatch],
    co_watched: Sequence[tuple[str, int]],
    near: Sequence[Near],
    language: str | None,
) -> None:
    """Take the sentence apart and look up each thing that it says; an unknown sentence fails."""
    this = videos[TARGET]
    liked = {watch.video_id for watch in watches if watch.percent >= PERCENT_MIN}
    seen = {each for each in liked if each in videos and each != TARGET}
    named = re.findall("“([^”]*)”", found.text)
    evidence = found.evidence
    assert [shown(videos[each]) for each in evidence.video_ids] == (
        named if evidence.kind != "title" else []
    )
    assert TARGET not in evidence.video_ids
    if "you watched" in found.text or "as you did" in found.text:
        assert set(evidence.video_ids) <= seen
    if about := re.fullmatch(
        r"Because you watched .*, which (?:is|are) about (.*) too\.", found.text
    ):
        topics = {each.casefold() for each in re.split(", | and ", about[1])}
        assert topics
        assert all(topics <= folded(videos[each]) for each in (TARGET, *evidence.video_ids))
    elif re.fullmatch(r"People who watched .* went on to this\.", found.text):
        [each] = evidence.video_ids
        assert (each, evidence.count) in co_watched
        assert evidence.count >= CO_WATCHES_MIN
        assert ("as you did" in found.text) <= (each in seen)
    elif channel := re.fullmatch(r"It is from (\w+), as is .*, which you watched\.", found.text):
        assert {videos[each].channel for each in (TARGET, *evidence.video_ids)} == {channel[1]}
    elif re.fullmatch(
        r"Because you watched .*, one of the nearest to this in content\.", found.text
    ):
        assert Near(evidence.video_ids[0]) in near
    elif about := re.fullmatch(r"It is (in your language and )?about (.*)\.", found.text):
        assert {each.casefold() for each in re.split(", | and ", about[2])} <= folded(this)
        assert not about[1] or this.language == language
    elif found.text == f"It is called “{shown(this)}”.":
        assert this.title
    else:
        assert found.text == "Nothing is known of it yet."


@given(
    st.lists(VIDEOS, min_size=1, max_size=6),
    WATCHES,
    st.lists(st.tuples(IDS, st.integers(1, 5)), max_size=4),
    st.lists(st.builds(Near, IDS), max_size=4),
    st.sampled_from([None, "en", "fr"]),
)
@settings(max_examples=300)
def test_no_sentence_says_more_than_is_known(
    catalogue: list[Video],
    watches: list[SeenWatch],
    co_watched: list[tuple[str, int]],
    near: list[Near],
    language: str | None,
) -> None:
    videos = {
        f"v{number}": each._replace(semantic_id=(number,)) for number, each in enumerate(catalogue)
    }
    found = explain(
        None,
        videos[TARGET],
        Speaker(language),
        watches,
        videos,
        co_watched=co_watched,
        neighbours=near,
    )
    assert found.source == "template"
    assert "\n" not in found.text
    assert found.text.endswith(".")
    check_clauses(found, videos, watches, co_watched, near, language)
    if not watches:
        assert "you watched" not in found.text
        assert "you did" not in found.text


@pytest.mark.parametrize(
    "text",
    [
        "Because you watched “Title 3”, which is about jazz too.",
        "People who watched “Title 1” went on to this.",
        "It is from Club, as is “Title 2”, which you watched.",
        "It is about chess.",
        "You will love it.",
    ],
)
def test_check_of_clauses_finds_a_sentence_that_is_not_borne_out(text: str) -> None:
    ids = tuple(f"v{number}" for number in re.findall(r"Title (\d)", text))
    found = Explanation(text, "template", Evidence("nothing", ids))
    with pytest.raises(AssertionError):
        check_clauses(found, JAZZ, [SeenWatch(each) for each in ids], [], [], None)

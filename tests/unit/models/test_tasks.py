"""Each task's text, and what its parser makes of the answer and of others."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from models.examples import Behaviour, text_examples, watch_text_examples
from models.prompts import render_semantic_id
from models.tasks import (
    VIDEO_TASKS,
    Answer,
    Interest,
    Recipe,
    Text,
    intent_of,
    parse_interest,
    parse_semantic_id,
    parse_words,
    render_masked,
    render_related,
    video_texts,
    watch_texts,
)
from tests.lrm_factories import SeenWatch, some_videos, tiny_lrm
from workers.training_actor import Video

VIDEOS = some_videos()
DAY_MS = 86_400_000
VIDEO = Video((1, 2, 0, 3), "Final at <a_7> last", "Court TV", ("tennis", "Wimbledon"), "en", 400.0)
CODES = "<a_1><b_2><c_0><d_3>"


@pytest.mark.parametrize(
    ("task", "prompt", "answer", "parsed"),
    [
        ("title", f"Video {CODES} has title", " Final at (a_7) last", "Final at (a_7) last"),
        ("topics", f"Video {CODES} has topics", " tennis Wimbledon", "tennis Wimbledon"),
        ("channel", f"Video {CODES} has channel", " Court TV", "Court TV"),
        ("by_title", "Video with title Final at (a_7) last is:", CODES, (1, 2, 0, 3)),
        (
            "by_topics", "Video about tennis Wimbledon with title Final at (a_7) last is:", CODES, (1, 2, 0, 3),
        ),
        ("by_channel", "Video by Court TV with title Final at (a_7) last is:", CODES, (1, 2, 0, 3)),
        (
            "interest", f"Video {CODES} is interesting to", " tennis fans since it is about Wimbledon",
            Interest("tennis fans", "Wimbledon"),
        ),
    ],
)  # fmt: skip
def test_task_renders_what_its_parser_reads(
    task: str, prompt: str, answer: str, parsed: Answer
) -> None:
    assert VIDEO_TASKS[task].render(VIDEO) == Text(prompt, answer)
    assert VIDEO_TASKS[task].parse(answer) == parsed


def test_every_task_is_rendered_once_by_default() -> None:
    assert len(list(video_texts([VIDEO], Recipe(), random.Random(0)))) == len(VIDEO_TASKS)


def test_video_without_words_has_no_text_about_them() -> None:
    bare = Video((1, 2, 0, 3), "Title", "", ())
    rendered = {name for name, task in VIDEO_TASKS.items() if task.render(bare)}
    assert rendered == {"title", "by_title"}


def test_video_of_one_topic_is_about_its_title() -> None:
    text = VIDEO_TASKS["interest"].render(VIDEO._replace(topics=("tennis",)))
    assert text is not None
    assert parse_interest(text.answer) == Interest("tennis fans", "Final at (a_7) last")


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (CODES, (1, 2, 0, 3)),
        (f" {CODES} Court TV 100%", (1, 2, 0, 3)),
        ("<a_1><b_2>", (1, 2)),
        ("<a_1><c_2>", (1,)),
        ("<b_2>", None),
        ("tennis", None),
        ("", None),
    ],
)
def test_codes_are_read_level_by_level(answer: str, codes: tuple[int, ...] | None) -> None:
    assert parse_semantic_id(answer) == codes


def test_answers_of_another_shape_are_none() -> None:
    assert parse_words("  ") is None
    assert parse_words(f"about {CODES}") is None
    assert parse_interest("tennis fans") is None


def test_hidden_video_is_the_answer_and_not_in_the_prompt() -> None:
    watched = [(1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0)]
    text = render_masked(watched, 1)
    assert text == Text(
        "Watched: <a_1><b_0><c_0><d_0> ? <a_3><b_0><c_0><d_0>\n? is:", "<a_2><b_0><c_0><d_0>"
    )


def test_related_prompt_knows_the_video_and_nobody() -> None:
    assert render_related(VIDEO, 3 * DAY_MS) == (
        f"Video {CODES} title Final at (a_7) last | channel Court TV | language en | duration a quarter hour | "
        "age a week\nwatch_next:"
    )
    bare = Video((1, 2, 0, 3), "Title", "", ())
    assert (
        render_related(bare, 400 * DAY_MS) == f"Video {CODES} title Title | age years\nwatch_next:"
    )


def texts(recipe: Recipe, watches: Sequence[SeenWatch], seed: int = 0) -> list[Text]:
    history = [SeenWatch("v0"), SeenWatch("unknown")]
    return list(watch_texts(None, history, watches, VIDEOS, recipe, random.Random(seed)))


def test_intent_is_of_what_was_then_watched_and_only_earlier_watches_are_shown() -> None:
    recipe = Recipe(masked=0, intent=1, related=0)
    for seed in range(10):
        watches = [SeenWatch("v1", surface="shorts"), SeenWatch("v2"), SeenWatch("gone")]
        [text] = texts(recipe, watches, seed)
        first, second = (render_semantic_id(VIDEOS[each].semantic_id) for each in ("v1", "v2"))
        assert text.answer in (first, second)
        is_first = text.answer == first
        surface, _, intent = text.prompt.rpartition("\n")[2].partition(" wants ")
        assert surface == ("shorts" if is_first else "home")
        assert {"drama", *VIDEOS["v1" if is_first else "v2"].title.split()} & set(
            intent.removesuffix(":").lower().split()
        )
        assert text.answer not in text.prompt
        assert (first in text.prompt) != is_first
        assert text.prompt.count("100%") == (1 if is_first else 2)


def test_intents_are_said_of_the_video_in_many_ways() -> None:
    rng = random.Random(0)
    intents = {intent_of(VIDEO, rng) for _ in range(3000)}
    assert {"tennis", "Wimbledon", "wimbledon", "something about tennis"} <= intents
    assert {"show me tennis please", "Wimbledon from Court TV", "(a_7) last"} <= intents
    said = {word for intent in intents for word in intent.lower().split()}
    of_video = set(["tennis", "wimbledon", "final", "at", "(a_7)", "last", "court", "tv", "from"])
    assert of_video <= said
    assert said - of_video == set(
        [
            "something",
            "about",
            "show",
            "me",
            "i",
            "want",
            "to",
            "watch",
            "more",
            "videos",
            "please",
            "today",
        ]
    )


def test_intent_of_a_video_without_topics_is_its_channel_or_title() -> None:
    rng = random.Random(0)
    bare = VIDEO._replace(topics=())
    assert "Court TV" in {intent_of(bare, rng) for _ in range(500)}
    untitled = bare._replace(channel="")
    intents = {intent_of(untitled, rng) for _ in range(500)}
    assert "Final at (a_7) last" in intents
    assert not any("from" in intent for intent in intents)


def test_what_followed_a_video_is_learned_from_that_video_alone() -> None:
    recipe = Recipe(masked=0, intent=0, related=1)
    watches = [
        SeenWatch("v1"),
        SeenWatch("v2", surface="watch_next", context_video_id="v1", event_time_ms=DAY_MS),
    ]
    [text] = texts(recipe, watches)
    assert text == Text(
        render_related(VIDEOS["v1"], DAY_MS), render_semantic_id(VIDEOS["v2"].semantic_id)
    )


def test_row_of_unknown_videos_has_no_texts() -> None:
    assert texts(Recipe(masked=1, intent=1, related=1), [SeenWatch("gone")]) == []


def test_weights_are_times_and_probabilities() -> None:
    recipe = Recipe(video_tasks={"title": 1.25, "topics": 0.5})
    counts: Counter[str] = Counter()
    for text in video_texts([VIDEO] * 400, recipe, random.Random(0)):
        counts[text.prompt.split()[-1]] += 1
    assert 460 < counts["title"] < 540
    assert 160 < counts["topics"] < 240
    assert counts.keys() == {"title", "topics"}


def test_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        Recipe(video_tasks={"colour": 1})


def test_loss_is_on_answers_only() -> None:
    lrm = tiny_lrm()
    [example] = text_examples(lrm, [Text("Video is:", CODES)])
    prompt = lrm.encode("Video is:")
    assert list(example.token_ids) == [*prompt, *lrm.encode(CODES), lrm.eos_token_id]
    assert [label for label in example.labels if label >= 0] == [
        *lrm.encode(CODES),
        lrm.eos_token_id,
    ]
    rows = [Behaviour(None, [], [SeenWatch("v1"), SeenWatch("v2")])]
    recipe = Recipe(masked=1, intent=1, related=0)
    assert len(watch_text_examples(lrm, rows, VIDEOS, recipe, random.Random(0))) == 2

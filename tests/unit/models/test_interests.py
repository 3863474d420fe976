from __future__ import annotations

import random
from dataclasses import replace

import pytest

from models.examples import pack, text_examples
from models.explanations import Evidence, Explanation, explain
from models.interests import is_borne_out, repeats_itself, write_interest
from models.lrm import Lrm
from models.tasks import Interest, Text, interest_prompt
from models.training import TrainingConfig, make_optimizer, train_on
from tests.lrm_factories import some_videos, tiny_lrm
from workers.training_actor import Video

VIDEOS = {each: video for each, video in list(some_videos().items())[:8]}
VIDEO = Video((1, 2, 0, 3), "Women's 100m final", "Court TV", ("sprint", "athletics"))


@pytest.mark.parametrize(
    ("audience", "subject", "expected"),
    [
        ("sprint fans", "the 100m", True),
        ("SPRINT fans", "athletics", True),
        ("sprint fans", "tennis", False),
        ("sprint fans", "the fans of it", False),
        ("horror fans", "the 100m final", False),
    ],
)
def test_what_shares_no_word_with_the_metadata_is_not_borne_out(
    audience: str, subject: str, expected: bool
) -> None:
    assert is_borne_out(Interest(audience, subject), VIDEO) is expected


def test_audience_of_a_video_without_topics_is_the_models_to_say() -> None:
    assert is_borne_out(Interest("running fans", "100m"), VIDEO._replace(topics=()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jazz fans since it is about jazz piano", False),
        ("jazz fans since it is about jazz and more jazz", True),
        ("tennis tennis fans since it is about tennis", True),
        ("Ali fans since it is about the fight of the century in the ring", False),
        ("", False),
    ],
)
def test_answer_that_goes_round_in_circles_is_found(text: str, expected: bool) -> None:
    assert repeats_itself(text) is expected


def taught(answers: dict[str, str], *, steps: int = 200) -> Lrm:
    """An LRM that has learned one answer by heart for each video."""
    lrm = replace(tiny_lrm(), writes_english=True)
    texts = [Text(interest_prompt(VIDEOS[each]), answer) for each, answer in answers.items()]
    config = TrainingConfig(dropout=0.0, blocks_per_step=1)
    blocks = pack(text_examples(lrm, texts), block_tokens=512, rng=random.Random(0))
    train_on(
        lrm, make_optimizer(lrm, config), blocks * steps, config, learning_rate=lambda *_: 5e-3
    )
    return lrm


ANSWERS = {
    "v0": " Drama fans since it is about storm number 0\nDrama",
    "v1": " Drama fans since it is about castle",  # it is of a river
    "v2": " Drama",
    "v3": " Drama fans since it is about storm" * 8,
    "v4": " Drama Drama fans since it is about river",
}


def test_only_an_answer_that_can_be_read_and_is_borne_out_is_given() -> None:
    lrm = taught(ANSWERS)
    found = {each: write_interest(lrm, VIDEOS[each]) for each in ANSWERS}
    assert found == dict.fromkeys(ANSWERS) | {"v0": Interest("Drama fans", "storm number 0")}
    told = explain(lrm, VIDEOS["v0"], None, [], VIDEOS)
    assert told == Explanation(
        "It is interesting to Drama fans since it is about storm number 0.",
        "model",
        Evidence("metadata", words=("drama", "storm", "number")),
    )
    assert explain(lrm, VIDEOS["v1"], None, [], VIDEOS).source == "template"
    silent = replace(lrm, writes_english=False)
    assert explain(silent, VIDEOS["v0"], None, [], VIDEOS).source == "template"


def test_codes_are_never_written() -> None:
    lrm = taught({"v0": "<a_1><b_2><c_0><d_0>", "v1": "<a_1><b_2><c_0><d_0>"}, steps=30)
    assert write_interest(lrm, VIDEOS["v0"]) is None

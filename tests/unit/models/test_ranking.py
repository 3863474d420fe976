from __future__ import annotations

import pytest
import torch

from models.examples import IGNORED
from models.prompts import Ask
from models.ranking import (
    Judgement,
    Rating,
    parse_rating,
    rank,
    ranking_examples,
    render_rating,
)
from models.recommend import Request
from tests.lrm_factories import SeenWatch, some_videos, tiny_lrm

VIDEOS = some_videos()
SEEN = (SeenWatch("v1"), SeenWatch("v2", surface="shorts"))


def judgement(video_id: str, share: float, *, liked: bool = False) -> Judgement:
    return Judgement(None, SEEN, "home", video_id, Rating(share, float(liked)))


@pytest.mark.parametrize(
    ("rating", "answer"),
    [
        (Rating(1.0, 1), "+9"),
        (Rating(0.0, 0), "-0"),
        (Rating(0.5, 0), "-4"),
        (Rating(1.27, 1), "+9"),
    ],
)
def test_rating_is_rendered_and_parsed_to_the_nearest_ninth(rating: Rating, answer: str) -> None:
    assert render_rating(rating) == answer
    found = parse_rating(answer)
    assert found is not None
    assert found.liked == rating.liked
    assert found.share == pytest.approx(min(rating.share, 1), abs=1 / 17)


@pytest.mark.parametrize("answer", ["", "9", "+", "+x", "<a_1>", "liked"])
def test_other_answers_are_no_rating(answer: str) -> None:
    assert parse_rating(answer) is None


def test_example_is_the_personalised_prompt_with_two_learned_tokens() -> None:
    lrm = tiny_lrm()
    [example] = ranking_examples(
        lrm, [judgement("v9", 1.0, liked=True), judgement("gone", 0.0)], VIDEOS
    )
    text = lrm.tokenizer.decode(list(example.token_ids), skip_special_tokens=False)
    assert text == (
        "User: unknown\nWatch history:\nhome:<a_1><b_0><c_0><d_0> 100% 60s\nshorts:<a_2><b_0><c_0><d_0> 100% 60s"
        "\nhome:<a_1><b_1><c_0><d_0> rated:+9"
    )
    learned = [label for label in example.labels if label != IGNORED]
    assert parse_rating(lrm.tokenizer.decode(learned)) == Rating(1.0, 1.0)


def test_ratings_are_those_of_each_candidate_alone() -> None:
    """The prompt is run once for all candidates: compared with one whole text for each answer."""
    lrm = tiny_lrm()
    request = Request(None, SEEN, Ask("home", "v3", "not in this prompt"))
    [found] = rank(lrm, [request], [["v4", "v9"]], VIDEOS)
    for video_id, rating in zip(("v4", "v9"), found, strict=True):
        [example] = ranking_examples(lrm, [judgement(video_id, 0.0)], VIDEOS)
        digits = [lrm.tokenizer.token_to_id(str(one)) for one in range(10)]
        liked = [lrm.tokenizer.token_to_id(one) for one in "-+"]
        share = 0.0
        for at in (0, 1):
            ids = torch.tensor([[*example.token_ids[:-2], liked[at]]])
            with torch.inference_mode():
                logits_SV = lrm.model(ids).logits[0]
            weight = float(logits_SV[-2, liked].softmax(-1)[at])
            parts = logits_SV[-1, digits].softmax(-1) * torch.arange(10) / 9
            share += weight * float(parts.sum())
        assert rating.liked == pytest.approx(weight, abs=1e-4)
        assert rating.share == pytest.approx(share, abs=1e-4)


def test_request_without_candidates_has_no_ratings() -> None:
    assert rank(tiny_lrm(), [Request(None, (), Ask("home"))], [[]], VIDEOS) == [[]]

"""Search for several semantic IDs per answer, against exhaustive scoring of all sequences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
from transformers import LlamaForCausalLM

from models.beam_search import beam_search
from models.semantic_id import SemanticId, SemanticIdSpace
from models.slate_search import Slate, slate_search
from models.trie import TrieView
from models.trie_filters import Filters
from tests.search_factories import PAD_TOKEN_ID, level_token_ids, random_model, view_of

SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=(4, 3), disambiguation_size=2)
LIVE: list[SemanticId] = [(0, 0, 0), (0, 0, 1), (0, 2, 0), (1, 1, 0), (3, 0, 0), (3, 2, 1)]
NUM_TEXT_TOKENS = 20
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11]]
SEPARATORS = [[], [3], [4, 2]]
BLOCKS = level_token_ids(SPACE, NUM_TEXT_TOKENS)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return random_model(SPACE, NUM_TEXT_TOKENS)


def search(
    model: LlamaForCausalLM,
    views: Sequence[TrieView],
    *,
    length: int,
    separator: Sequence[int] = (),
    beam_width: int = 200,
) -> list[list[Slate]]:
    return slate_search(
        model,
        PROMPTS[: len(views)],
        views,
        length=length,
        level_token_ids=BLOCKS,
        separator_token_ids=separator,
        beam_width=beam_width,
        top_k=beam_width,
        pad_token_id=PAD_TOKEN_ID,
    )


@torch.inference_mode()
def exhaustive(
    model: LlamaForCausalLM,
    prompt: Sequence[int],
    live: Sequence[SemanticId],
    length: int,
    separator: Sequence[int],
) -> list[tuple[tuple[SemanticId, ...], float]]:
    """Score every sequence of different semantic IDs by its own full pass; best first."""
    scored = []
    for slate in permutations(live, length):
        tokens, counted = list(prompt), []
        for number, semantic_id in enumerate(slate):
            tokens += separator if number else []
            for block, code in zip(BLOCKS, semantic_id, strict=True):
                counted.append(len(tokens))
                tokens.append(int(block[code]))
        log_probs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        scored.append((slate, sum(float(log_probs[at - 1, tokens[at]]) for at in counted)))
    return sorted(scored, key=lambda pair: -pair[1])


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_slate_search_of_full_width_equals_exhaustive_scoring(
    model: LlamaForCausalLM, length: int, separator: list[int]
) -> None:
    live = [LIVE, LIVE[:4], LIVE[2:]]
    found = search(model, [view_of(one, SPACE) for one in live], length=length, separator=separator)
    for slates, prompt, semantic_ids in zip(found, PROMPTS, live, strict=True):
        expected = exhaustive(model, prompt, semantic_ids, length, separator)
        answers = [tuple(one.semantic_id for one in slate.candidates) for slate in slates]
        assert answers == [slate for slate, _ in expected]
        scores = [slate.log_prob for slate in slates]
        assert scores == pytest.approx([score for _, score in expected], abs=1e-4)
        for slate in slates:
            assert [one.video_id for one in slate.candidates] == [
                str(one.semantic_id) for one in slate.candidates
            ]


def test_slate_search_for_one_equals_beam_search(model: LlamaForCausalLM) -> None:
    views = [view_of(LIVE, SPACE), view_of(LIVE[:2], SPACE)]
    found = beam_search(
        model,
        PROMPTS[:2],
        views,
        level_token_ids=BLOCKS,
        beam_width=4,
        top_k=4,
        pad_token_id=PAD_TOKEN_ID,
    )
    slates = search(model, views, length=1, beam_width=4)
    assert [[slate.candidates[0] for slate in each] for each in slates] == found


@pytest.mark.parametrize("beam_width", [1, 3, 50])
def test_slate_never_repeats_a_video_however_narrow_the_search(
    model: LlamaForCausalLM, beam_width: int
) -> None:
    [slates] = search(model, [view_of(LIVE, SPACE)], length=len(LIVE), beam_width=beam_width)
    assert slates
    for slate in slates:
        assert sorted(one.semantic_id for one in slate.candidates) == sorted(LIVE)


def test_slate_longer_than_what_passes_is_none_and_holds_nothing_else(
    model: LlamaForCausalLM,
) -> None:
    """When nothing is left that may follow, a beam ends; it is never let go anywhere."""
    view = view_of(LIVE, SPACE)
    filtered = view.filtered(Filters(excluded_video_ids=[str(one) for one in LIVE[2:]]))
    short, whole = search(model, [filtered, view], length=3)
    assert short == []
    assert len(whole) == 6 * 5 * 4
    assert search(model, [filtered], length=3) == [[]]


def test_slate_of_no_length_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="length of 0"):
        search(model, [view_of(LIVE, SPACE)], length=0)

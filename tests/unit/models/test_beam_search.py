"""Beam search against exhaustive scoring and against Hugging Face's own constrained generation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from models.beam_search import Candidate, beam_search
from models.semantic_id import SemanticId, SemanticIdSpace
from models.trie import TrieView
from models.trie_filters import Filters
from tests import search_factories
from tests.search_factories import PAD_TOKEN_ID, random_model

SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=(8, 6, 4), disambiguation_size=2)
NUM_SEMANTIC_IDS = 8 * 6 * 4 * 2
NUM_TEXT_TOKENS = 30
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 11, 12], [20], [3, 1, 4, 1, 5]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return random_model(SPACE, NUM_TEXT_TOKENS)


def view_of(semantic_ids: Sequence[SemanticId], space: SemanticIdSpace = SPACE) -> TrieView:
    return search_factories.view_of(semantic_ids, space)


def level_token_ids(space: SemanticIdSpace) -> list[torch.Tensor]:
    return search_factories.level_token_ids(space, NUM_TEXT_TOKENS)


def some_semantic_ids(count: int, seed: int = 0) -> list[SemanticId]:
    rng = np.random.default_rng(seed)
    flat = rng.choice(NUM_SEMANTIC_IDS, size=count, replace=False)
    return [tuple(row) for row in np.stack(np.unravel_index(flat, SPACE.level_sizes), 1).tolist()]


def search(
    model: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    views: Sequence[TrieView],
    beam_width: int,
    top_k: int | None = None,
    smoothing: Sequence[float] = (),
) -> list[list[Candidate]]:
    return beam_search(
        model,
        prompts,
        views,
        level_token_ids=level_token_ids(views[0].space),
        beam_width=beam_width,
        top_k=top_k or beam_width,
        pad_token_id=PAD_TOKEN_ID,
        smoothing=smoothing,
    )


def as_tokens(semantic_id: SemanticId, space: SemanticIdSpace = SPACE) -> list[int]:
    blocks = level_token_ids(space)
    return [int(block[code]) for block, code in zip(blocks, semantic_id, strict=True)]


@torch.inference_mode()
def exhaustive(
    model: LlamaForCausalLM,
    prompt: Sequence[int],
    semantic_ids: Sequence[SemanticId],
    space: SemanticIdSpace = SPACE,
) -> list[tuple[SemanticId, float]]:
    """Score every semantic ID by its own full pass, without cache or padding; best first."""
    answers = torch.tensor([as_tokens(semantic_id, space) for semantic_id in semantic_ids])
    rows = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], dim=1)
    log_probs = model(rows).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
    scores = log_probs.gather(2, answers[..., None]).sum((1, 2)).tolist()
    return sorted(zip(semantic_ids, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))


def assert_same(
    candidates: Sequence[Candidate], expected: Sequence[tuple[SemanticId, float]]
) -> None:
    assert [candidate.semantic_id for candidate in candidates] == [pair[0] for pair in expected]
    scores = [candidate.log_prob for candidate in candidates]
    assert scores == pytest.approx([pair[1] for pair in expected], abs=1e-4)
    for candidate in candidates:
        assert candidate.video_id == str(candidate.semantic_id)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("count", [1, 7, 90, NUM_SEMANTIC_IDS])
def test_beam_search_of_full_width_equals_exhaustive_scoring(
    model: LlamaForCausalLM, prompt: list[int], count: int
) -> None:
    live = some_semantic_ids(count)
    [candidates] = search(model, [prompt], [view_of(live)], beam_width=NUM_SEMANTIC_IDS)
    assert_same(candidates, exhaustive(model, prompt, live))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("beam_width", [2, 4])
def test_beam_search_equals_hugging_face_constrained_generation(
    model: LlamaForCausalLM, prompt: list[int], beam_width: int
) -> None:
    """With a live code for every beam on every level.

    Hugging Face fills up with dead beams where there are fewer, among them continuations that are not live; so with
    too few its answers are no reference. It also ties otherwise.
    """
    live = some_semantic_ids(120)
    allowed: dict[tuple[int, ...], set[int]] = {}
    for tokens in map(as_tokens, live):
        for level, token in enumerate(tokens):
            allowed.setdefault(tuple(tokens[:level]), set()).add(token)
    generated = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        prefix_allowed_tokens_fn=lambda _, row: sorted(allowed[tuple(row[len(prompt) :].tolist())]),
        num_beams=beam_width,
        num_return_sequences=beam_width,
        max_new_tokens=SPACE.num_levels,
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    semantic_id_of = {tuple(as_tokens(semantic_id)): semantic_id for semantic_id in live}
    answers = [semantic_id_of[tuple(row[len(prompt) :])] for row in generated.sequences.tolist()]
    expected = list(zip(answers, generated.sequences_scores.tolist(), strict=True))
    [candidates] = search(model, [prompt], [view_of(live)], beam_width)
    assert_same(candidates, expected)


def test_beam_search_of_a_batch_equals_one_by_one(model: LlamaForCausalLM) -> None:
    counts = [200, 60, 0, 3]
    views = [view_of(some_semantic_ids(count, seed=count)) for count in counts]
    together = search(model, PROMPTS, views, beam_width=10)
    for prompt, view, candidates in zip(PROMPTS, views, together, strict=True):
        [alone] = search(model, [prompt], [view], beam_width=10)
        assert_same(candidates, [(one.semantic_id, one.log_prob) for one in alone])
    assert [len(candidates) for candidates in together] == [10, 10, 0, 3]


def test_beam_search_of_equal_prompts_with_different_views_equals_one_by_one(
    model: LlamaForCausalLM,
) -> None:
    shapes: list[tuple[int, ...]] = []
    prompts = [PROMPTS[at] for at in (1, 0, 1, 1, 3, 0)]
    views = [view_of(some_semantic_ids(n, seed=n)) for n in (200, 60, 0, 3, 90, 150)]
    hook = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        together = search(model, prompts, views, beam_width=9)
    finally:
        hook.remove()
    assert shapes[0] == (3, 11)
    assert [len(candidates) for candidates in together] == [9, 9, 0, 3, 9, 9]
    for prompt, view, candidates in zip(prompts, views, together, strict=True):
        [alone] = search(model, [prompt], [view], beam_width=9)
        assert_same(candidates, [(one.semantic_id, one.log_prob) for one in alone])


def test_beam_search_with_eager_attention_equals_sdpa(model: LlamaForCausalLM) -> None:
    views = [view_of(some_semantic_ids(100))] * len(PROMPTS)
    expected = search(model, PROMPTS, views, beam_width=6)
    model.set_attn_implementation("eager")
    try:
        eager = search(model, PROMPTS, views, beam_width=6)
    finally:
        model.set_attn_implementation("sdpa")
    for candidates, wanted in zip(eager, expected, strict=True):
        assert_same(candidates, [(one.semantic_id, one.log_prob) for one in wanted])


def test_beam_search_runs_each_prompt_once_and_shares_its_row(model: LlamaForCausalLM) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    view = view_of(some_semantic_ids(NUM_SEMANTIC_IDS))
    try:
        search(model, [*PROMPTS, PROMPTS[1]], [view] * 5, beam_width=10)
    finally:
        hook.remove()
    assert shapes == [(4, 11), (4, 16), (4, 20), (4, 20)]


def test_beam_search_of_a_filtered_view_proposes_only_what_passes(
    model: LlamaForCausalLM,
) -> None:
    live = some_semantic_ids(100)
    view = view_of(live)
    [everything] = search(model, [PROMPTS[0]], [view], beam_width=100)
    watched = Filters(excluded_video_ids=[candidate.video_id for candidate in everything[:30]])
    unwatched = view.filtered(watched)
    [candidates] = search(model, [PROMPTS[0]], [unwatched], beam_width=100)
    assert_same(candidates, [(one.semantic_id, one.log_prob) for one in everything[30:]])


def test_beam_search_never_joins_codes_of_different_semantic_ids(model: LlamaForCausalLM) -> None:
    """Adjacent pairs of (0,0,0,0) and (1,0,1,0) also spell (0,0,1,0) and (1,0,0,0), which are not live."""
    live: list[SemanticId] = [(0, 0, 0, 0), (1, 0, 1, 0)]
    for prompt in PROMPTS:
        [candidates] = search(model, [prompt], [view_of(live)], beam_width=20)
        assert_same(candidates, exhaustive(model, prompt, live))


def test_beam_search_of_only_empty_views_is_empty(model: LlamaForCausalLM) -> None:
    assert search(model, PROMPTS, [view_of([])] * 4, beam_width=5) == [[], [], [], []]


@pytest.mark.parametrize("top_k", [5, 150])
def test_beam_search_with_equal_scores_prefers_smaller_keys(
    model: LlamaForCausalLM, top_k: int
) -> None:
    """A model blind to its context, for which odd codes are likelier: equal counts of them tie."""
    blind = LlamaForCausalLM(model.config).eval()
    torch.nn.init.ones_(blind.model.embed_tokens.weight)
    for layer in blind.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    torch.nn.init.zeros_(blind.lm_head.weight)
    for token_ids_K in level_token_ids(SPACE):
        # One weight, not a sum of many, so that equal logits are equal to the bit.
        blind.lm_head.weight.data[token_ids_K[1::2], 0] = 4.0
    live = some_semantic_ids(150)
    [candidates] = search(blind, [PROMPTS[1]], [view_of(live)], beam_width=150, top_k=top_k)
    expected = sorted(live, key=lambda codes: (-sum(code % 2 for code in codes), codes))
    assert [candidate.semantic_id for candidate in candidates] == expected[:top_k]


def test_beam_search_with_a_broken_model_still_proposes_only_live_videos(
    model: LlamaForCausalLM,
) -> None:
    broken = LlamaForCausalLM(model.config).eval()
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    live = some_semantic_ids(12)
    [candidates] = search(broken, [PROMPTS[0]], [view_of(live)], beam_width=4)
    assert len(candidates) == 4
    assert {candidate.semantic_id for candidate in candidates} <= set(live)


@pytest.mark.parametrize("codebook_sizes", [(5, 3), (4, 3, 3, 2), (3, 3, 2, 2, 2, 2, 2)])
def test_beam_search_of_any_number_of_levels_and_a_batch_equals_exhaustive_scoring(
    model: LlamaForCausalLM, codebook_sizes: tuple[int, ...]
) -> None:
    space = SemanticIdSpace(
        codebook_version=1, codebook_sizes=codebook_sizes, disambiguation_size=2
    )
    everything = list(np.ndindex(*space.level_sizes))
    live = [everything[place::3] for place in range(3)] + [everything]
    views = [view_of(some, space) for some in live]
    found = search(model, PROMPTS, views, beam_width=len(everything))
    for candidates, prompt, some in zip(found, PROMPTS, live, strict=True):
        assert_same(candidates, exhaustive(model, prompt, some, space))


def test_beam_search_with_arguments_that_disagree_is_refused(model: LlamaForCausalLM) -> None:
    view = view_of(some_semantic_ids(5))
    other_space = SemanticIdSpace(codebook_version=2, codebook_sizes=(8, 6), disambiguation_size=2)
    other_view = view_of([(0, 0, 0)], other_space)
    with pytest.raises(ValueError, match="each prompt has one"):
        search(model, PROMPTS, [view], beam_width=5)
    with pytest.raises(ValueError, match="a prompt is empty"):
        search(model, [[]], [view], beam_width=5)
    with pytest.raises(ValueError, match="expected 1 to beam_width"):
        search(model, [[1]], [view], beam_width=5, top_k=6)
    with pytest.raises(ValueError, match="one codebook_version"):
        search(model, [[1], [2]], [view, other_view], beam_width=5)


@torch.inference_mode()
def smoothed(
    model: LlamaForCausalLM,
    prompt: Sequence[int],
    semantic_ids: Sequence[SemanticId],
    share: float,
) -> list[tuple[SemanticId, float]]:
    """Score every semantic ID code by code, each code by a pass of its own; best first."""

    def code_probs(prefix: SemanticId) -> dict[int, float]:
        level = len(prefix)
        tokens = [int(level_token_ids(SPACE)[at][code]) for at, code in enumerate(prefix)]
        probs = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].softmax(-1)
        live = {one[level] for one in semantic_ids if one[:level] == prefix}
        own = {code: float(probs[level_token_ids(SPACE)[level][code]]) for code in live}
        return {
            code: (1 - share) * prob + share / len(live) if prefix else prob
            for code, prob in own.items()
        }

    known: dict[SemanticId, dict[int, float]] = {}
    scored = []
    for one in semantic_ids:
        log_prob = 0.0
        for level in range(len(one)):
            prefix = one[:level]
            if prefix not in known:
                known[prefix] = code_probs(prefix)
            log_prob += float(np.log(known[prefix][one[level]]))
        scored.append((one, log_prob))
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_smoothed_search_mixes_each_code_with_an_even_one_over_what_may_follow(
    model: LlamaForCausalLM, share: float
) -> None:
    semantic_ids = some_semantic_ids(40)
    expected = smoothed(model, PROMPTS[0], semantic_ids, share)
    found = search(model, PROMPTS[:1], [view_of(semantic_ids)], 40, smoothing=[share])
    scores = [one.log_prob for one in found[0]]
    assert scores == pytest.approx([pair[1] for pair in expected], abs=1e-4)


def test_each_prompt_is_searched_with_its_own_smoothing(model: LlamaForCausalLM) -> None:
    view, prompt, shares = view_of(some_semantic_ids(40)), PROMPTS[0], [0.0, 0.6, 1.0]
    together = search(model, [prompt] * 3, [view] * 3, 20, smoothing=shares)
    for share, found in zip(shares, together, strict=True):
        [alone] = search(model, [prompt], [view], 20, smoothing=[share])
        assert [one.semantic_id for one in found] == [one.semantic_id for one in alone]
    assert together[0] != together[1] != together[2]


def test_smoothing_that_is_no_share_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="smoothing is"):
        search(model, PROMPTS[:1], [view_of(some_semantic_ids(4))], 4, smoothing=[1.5])

"""A random model that speaks a small space of semantic IDs, and tries of some, as the tests of searches need them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.semantic_id import SemanticId, SemanticIdSpace
from models.trie import LiveTrie, TrieView

PAD_TOKEN_ID = 0


def level_token_ids(space: SemanticIdSpace, num_text_tokens: int) -> list[torch.Tensor]:
    """Give the codes descending token ids, so that code and token are not mixed up unseen."""
    first, blocks = num_text_tokens, []
    for size in space.level_sizes:
        blocks.append(torch.arange(first, first + size).flip(0))
        first += size
    return blocks


def random_model(space: SemanticIdSpace, num_text_tokens: int) -> LlamaForCausalLM:
    """Return always the same model, whose keys and values are shared by two heads each."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=num_text_tokens + sum(space.level_sizes),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        # Random weights of the usual 0.02 make every continuation about as likely as any other.
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD_TOKEN_ID,
    )
    return LlamaForCausalLM(config).eval()


def view_of(semantic_ids: Sequence[SemanticId], space: SemanticIdSpace) -> TrieView:
    """Return the trie of some semantic IDs, each held by a video that is called like it."""
    trie = LiveTrie(space)
    names = [str(semantic_id) for semantic_id in semantic_ids]
    trie.insert_many(semantic_ids, names, [0] * len(names))
    return trie.view

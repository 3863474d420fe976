"""A tiny pretrained-like Hugging Face model in a folder, made on the spot: no download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.base_models import extended_lrm
from models.lrm import Lrm
from models.semantic_id import SemanticIdSpace
from models.training import TrainingConfig
from tests.lrm_factories import SPACE, shard_row
from workers.training_state import TrainingState, new_state

END = "<|end|>"


def base_folder(
    folder: Path, *, tied: bool = True, eos_token: str | None = END, spare_rows: int = 0
) -> Path:
    """Write a Llama of two layers whose tokenizer has an end token of its own name and no pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a storm over the river castle"] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size() + spare_rows,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=64,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).save_pretrained(folder)
    return folder


def code_vectors(space: SemanticIdSpace = SPACE, *, code_dim: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, code_dim, generator=generator) for size in space.codebook_sizes]


def tiny_extended(folder: Path, *, tied: bool = True) -> Lrm:
    return extended_lrm(str(base_folder(folder, tied=tied)), SPACE, code_vectors())


def adapted_state(folder: Path, config: TrainingConfig) -> TrainingState:
    """A pretrained base of which adapters and code rows learn."""
    state = new_state(tiny_extended(folder), replace(config, adapter_rank=4), seed=3)
    state.anchor_rows = [shard_row("anchor", ["v1", "v2", "v3"])]
    return state

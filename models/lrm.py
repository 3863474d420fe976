"""The Large Recommender Model: any Hugging Face causal LM whose vocabulary holds the codes; knows nothing of training.

A saved LRM is a folder that `AutoModelForCausalLM` and `AutoTokenizer` load (config.json, model.safetensors,
tokenizer.json), with lrm.json beside them: codebook, limits and how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging as hf_logging

from infra.errors import VersionMismatchError
from infra.storage import sha256_of
from models.base_lora import plain_weights
from models.code_embeddings import code_embeddings
from models.semantic_id import SemanticIdSpace
from models.vocabulary import EOS, PAD, level_token_ids, train_tokenizer

hf_logging.disable_progress_bar()

WEIGHTS = "model.safetensors"
SIDECAR = "lrm.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LrmConfig:
    """The shape of a model trained from scratch."""

    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    intermediate_size: int = 352
    text_vocabulary_size: int = 2048
    """BPE tokens; the codes come on top."""
    history_max: int = 32
    """Watches in a prompt: seven or so tokens each."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}"
            )


NANO = LrmConfig()
TINY = LrmConfig(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=64,
    text_vocabulary_size=400,
    history_max=20,
)


@dataclass(frozen=True)
class Lrm:
    """A model with its tokenizer and the semantic IDs it speaks; immutable once it serves."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    space: SemanticIdSpace
    history_max: int
    level_token_ids: tuple[Tensor, ...]
    pad_token: str = PAD
    eos_token: str = EOS
    writes_english: bool = False
    """Whether its base had learned English before it learned codes."""

    @property
    def pad_token_id(self) -> int:
        """The token id that fills the left of a batch."""
        return _token_id(self.tokenizer, self.pad_token)

    @property
    def eos_token_id(self) -> int:
        """The token id that ends a training text."""
        return _token_id(self.tokenizer, self.eos_token)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a rendered text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def build_lrm(
    texts: Iterable[str],
    space: SemanticIdSpace,
    *,
    config: LrmConfig = NANO,
    code_vectors: Sequence[Tensor] = (),
    seed: int = 0,
) -> Lrm:
    """Return an untrained LRM whose BPE is trained on `texts`.

    With a codebook's code vectors, codes begin as far from each other as those are; without them, anywhere.

    Shapes: code_vectors, for each level but the last, [K_level, C_level].
    """
    tokenizer = train_tokenizer(texts, space, vocabulary_size=config.text_vocabulary_size)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=_token_id(tokenizer, PAD),
            bos_token_id=None,
            eos_token_id=_token_id(tokenizer, EOS),
            # The usual 0.02 is for a hidden size of thousands; with it the first third of a short fit is a plateau.
            initializer_range=0.06,
            attn_implementation="sdpa",
        )
    )
    lrm = assemble(model, tokenizer, space, history_max=config.history_max)
    if code_vectors:
        table_VD = model.get_input_embeddings().weight  # the output's too
        with torch.no_grad():
            table_VD[torch.cat(list(lrm.level_token_ids))] = code_embeddings(
                table_VD, space, code_vectors, spread=1.0, seed=seed
            )
    return lrm


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise VersionMismatchError(
            f"the tokenizer has no token {token}, which {SIDECAR} names as the one that pads or ends a text"
        )
    return token_id


def assemble(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    space: SemanticIdSpace,
    *,
    history_max: int,
    pad_token: str = PAD,
    eos_token: str = EOS,
    writes_english: bool = False,
) -> Lrm:
    """Join the parts of an LRM, in evaluation mode."""
    model.eval()
    token_ids = level_token_ids(tokenizer, space)
    return Lrm(
        model, tokenizer, space, history_max, token_ids, pad_token, eos_token, writes_english
    )


def save_lrm(lrm: Lrm, directory: Path, *, notes: dict[str, Any] | None = None) -> str:
    """Write the LRM into an existing or new folder and return its weights' sha256; not atomic by itself.

    Adapters are folded into the weights, here as in the model at hand.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lrm.model.save_pretrained(directory, state_dict=plain_weights(lrm.model))
    PreTrainedTokenizerFast(
        tokenizer_object=lrm.tokenizer,
        pad_token=lrm.pad_token,
        eos_token=lrm.eos_token,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)
    sidecar = {
        "space": asdict(lrm.space),
        "history_max": lrm.history_max,
        "pad_token": lrm.pad_token,
        "eos_token": lrm.eos_token,
        "writes_english": lrm.writes_english,
        "notes": notes or {},
    }
    (directory / SIDECAR).write_text(json.dumps(sidecar, indent=1, sort_keys=True))
    return sha256_of(directory / WEIGHTS)


def load_lrm(
    directory: Path, *, sha256: str | None = None, codebook_version: int | None = None
) -> Lrm:
    """Load what `save_lrm` wrote, checking the weights' hash before reading them.

    Raises:
        VersionMismatchError: the folder is incomplete, its hash differs, its weights are not finite, or it speaks
            another codebook.
    """
    try:
        found = sha256_of(directory / WEIGHTS)
        sidecar = json.loads((directory / SIDECAR).read_text())
        tokenizer = _tokenizer((directory / "tokenizer.json").read_text())
    except (OSError, ValueError) as error:
        raise VersionMismatchError(f"checkpoint {directory.name} is incomplete: {error}") from error
    if sha256 is not None and found != sha256:
        raise VersionMismatchError(
            f"checkpoint {directory.name} has weights {found}, announced was {sha256}"
        )
    space = SemanticIdSpace(
        codebook_version=sidecar["space"]["codebook_version"],
        codebook_sizes=tuple(sidecar["space"]["codebook_sizes"]),
        disambiguation_size=sidecar["space"]["disambiguation_size"],
    )
    if codebook_version is not None and space.codebook_version != codebook_version:
        raise VersionMismatchError(
            f"checkpoint {directory.name} speaks codebook {space.codebook_version}, live is {codebook_version}"
        )
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        attn_implementation="sdpa",
    )
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise VersionMismatchError(f"checkpoint {directory.name} has weights that are not finite")
    return assemble(
        model,
        tokenizer,
        space,
        history_max=sidecar["history_max"],
        pad_token=sidecar.get("pad_token", PAD),  # older ones had no other
        eos_token=sidecar.get("eos_token", EOS),
        writes_english=sidecar.get("writes_english", False),
    )


@lru_cache(maxsize=2)
def _tokenizer(text: str) -> Tokenizer:
    """Return the tokenizer, which the models of one codebook share: reading it keeps Python's lock from requests."""
    return Tokenizer.from_str(text)

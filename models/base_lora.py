"""LoRA that trains a pretrained causal LM, code rows in full, and is folded into it; knows nothing of tokenizers.

- Attached, the model stays the Hugging Face class that it was: `model(...)`, beam search and evaluation work as before.
- What learns: two thin matrices per linear layer of attention and MLP (LoRA), and the code tokens' embeddings. All
  else is frozen; it takes no gradient and no optimizer state.
- `fold` adds the adapters to the weights and sets them back to the identity, keeping A and AdamW's moments: so the
  folded weights are all of the model, a checkpoint needs no second copy of the base, and what comes after many folds
  may be of any rank (ReLoRA, Lialin et al., 2307.05695, without its restart of the optimizer).

Shape suffixes: V vocabulary, C code tokens, D hidden size, N positions of any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers.modeling_utils import PreTrainedModel

from infra.errors import ConfigError

ADAPTER = "default"
CODE_ROWS = ".code_rows"  # how the names of their parameters end


class CodeRowsEmbedding(nn.Module):
    """An embedding of which only the code tokens' rows learn."""

    def __init__(self, weight_VD: Tensor, code_ids_C: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_VD, requires_grad=False)
        self.code_rows = nn.Parameter(weight_VD[code_ids_C].clone())
        slot_V = torch.full((len(weight_VD),), -1)
        slot_V[code_ids_C] = torch.arange(len(code_ids_C))
        self.register_buffer("code_ids", code_ids_C.clone(), persistent=False)
        self.register_buffer("slot", slot_V, persistent=False)

    def forward(self, token_ids_N: Tensor) -> Tensor:
        """Return the tokens' embeddings, [..., D]."""
        slot_N = self.get_buffer("slot")[token_ids_N]
        codes_ND = embedding(slot_N.clamp(min=0), self.code_rows)
        return torch.where((slot_N >= 0)[..., None], codes_ND, embedding(token_ids_N, self.weight))


class CodeRowsHead(nn.Module):
    """A language-model head of which only the code tokens' rows learn; tied, it shares them with the embedding."""

    def __init__(self, head: nn.Linear, code_ids_C: Tensor, tied: CodeRowsEmbedding | None) -> None:
        super().__init__()
        rows = tied or CodeRowsEmbedding(head.weight.detach(), code_ids_C)
        self.weight, self.code_rows = rows.weight, rows.code_rows
        self.register_buffer("code_ids", code_ids_C.clone(), persistent=False)
        self.bias = head.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits, [..., V]."""
        logits_NV = linear(hidden_ND, self.weight, self.bias)
        code_ids_C = self.get_buffer("code_ids")
        bias_C = None if self.bias is None else self.bias[code_ids_C]
        return logits_NV.index_copy(-1, code_ids_C, linear(hidden_ND, self.code_rows, bias_C))


def attach_adapters(
    model: PreTrainedModel, code_ids_C: Tensor, *, rank: int, seed: int = 0
) -> None:
    """Freeze the model but for its code rows and new adapters of this rank, which change nothing yet.

    Source: Hu et al. 2021 (LoRA, 2106.09685) sec. 4.1; scaled by 2, on every linear layer but the head.

    Raises:
        ConfigError: the model's embedding or head is of a kind whose rows cannot be told apart.
    """
    from peft import LoraConfig, inject_adapter_in_model  # serving, which only loads, need not wait

    plain, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(plain) is not nn.Embedding or type(head) is not nn.Linear:
        raise ConfigError(
            f"{type(model).__name__} has {type(plain).__name__} and {type(head).__name__}; adapters need a plain "
            "embedding and head: choose another base model, such as smollm2-135m"
        )
    tied = head.weight is plain.weight
    rows = CodeRowsEmbedding(plain.weight.detach(), code_ids_C)
    model.set_input_embeddings(rows)
    model.set_output_embeddings(CodeRowsHead(head, code_ids_C, rows if tied else None))
    torch.manual_seed(seed)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    inject_adapter_in_model(lora, model, adapter_name=ADAPTER)
    for module in _code_row_modules(model):
        module.code_rows.requires_grad_(True)


@torch.no_grad()
def fold(model: PreTrainedModel) -> None:
    """Add what was learned to the frozen weights; the model computes the same, its adapters nothing. Repeatable."""
    for module in model.modules():
        if ADAPTER in getattr(module, "lora_B", ()):  # those of other names stay apart
            module.get_base_layer().weight += module.get_delta_weight(ADAPTER)
            module.lora_B[ADAPTER].weight.zero_()
    for module in _code_row_modules(model):
        module.weight[module.get_buffer("code_ids")] = module.code_rows


def plain_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Fold, and return the weights under the names that the model has without adapters."""
    fold(model)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name and not name.endswith(CODE_ROWS)
    }


def adapter_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return what a folded model needs beside its plain weights to go on as it was: the A matrices."""
    return {
        name: parameter.detach().clone().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_A." in name
    }


@torch.no_grad()
def restore_adapters(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Put back what `adapter_tensors` returned."""
    named = dict(model.named_parameters())
    for name, value in tensors.items():
        named[name].copy_(value)


def _code_row_modules(model: PreTrainedModel) -> list[CodeRowsEmbedding | CodeRowsHead]:
    return [each for each in model.modules() if isinstance(each, CodeRowsEmbedding | CodeRowsHead)]

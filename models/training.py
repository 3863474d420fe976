"""Continued pre-training of the LRM: packed blocks in, weights and a loss out; knows nothing of shards or checkpoints.

Shape suffixes: B blocks of a step, T tokens, N tokens that have a label, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from models.base_lora import CODE_ROWS, attach_adapters, fold
from models.dropout import dropped_out
from models.examples import IGNORED, Block, collate
from models.lrm import Lrm
from models.training_kernels import training_kernels


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How an LRM is fitted once, and then refreshed in rounds."""

    peak_learning_rate: float = 2e-3
    """Of the initial fit, after its warm-up."""
    round_learning_rate: float = 6e-4
    """Constant over all rounds: re-warming at every round forgets more (Ibrahim et al., 2403.08763, sec. 6)."""
    warmup_share: float = 0.05
    """Share of the initial fit's steps in which the learning rate rises."""
    weight_decay: float = 0.05
    gradient_norm_max: float = 1.0
    block_tokens: int = 256
    blocks_per_step: int = 4
    """Small steps: a model this small is short of updates, not of tokens."""
    adapter_rank: int = 0
    """Of low-rank adapters, beside which only the codes' embeddings learn; 0: all weights learn."""
    code_rate: float = 1.0
    """Learning rate of the codes' embeddings, in multiples of the adapters' beside them: codes are new, words not."""
    dropout: float = 0.1
    """Of embeddings and of what each layer adds; see LOG.md."""
    bfloat16: bool = False
    """Multiply matrices in bfloat16; weights and AdamW's state stay float32, so that small steps count."""

    def __post_init__(self) -> None:
        if not 0 < self.round_learning_rate <= self.peak_learning_rate:
            raise ValueError(
                f"round_learning_rate {self.round_learning_rate} is not in (0, {self.peak_learning_rate}]"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is not in [0, 1)")


@dataclass(frozen=True)
class Part:
    """Which blocks of each step one of several workers takes: every `of`-th, beginning with the one numbered `rank`.

    The workers are the default process group of torch.distributed, and all call `train_on` with the same arguments.
    """

    rank: int
    of: int


def pretrained_config() -> TrainingConfig:
    """Return how a pretrained base is trained here: whole on a GPU, by adapters and code rows on a CPU.

    The rates are lower than those of a model from scratch, so that the base keeps its language.
    """
    if torch.cuda.is_available():
        return TrainingConfig(
            peak_learning_rate=2e-4, round_learning_rate=6e-5, dropout=0.0, bfloat16=True
        )
    able = torch.cpu.get_capabilities()
    return TrainingConfig(
        peak_learning_rate=1e-3,
        round_learning_rate=3e-4,
        weight_decay=0.0,
        blocks_per_step=1,
        adapter_rank=16,
        dropout=0.0,
        code_rate=10.0,  # at 30 their rows grow so long that they take the place of English words
        bfloat16=bool(able.get("avx512_bf16") or able.get("amx_bf16")),  # a step in half the time
    )


def prepare(lrm: Lrm, config: TrainingConfig, *, seed: int = 0) -> None:
    """Put the model where it is trained, a GPU if there is one, and attach what the config asks for, once."""
    if config.adapter_rank:
        code_ids_C = torch.cat(lrm.level_token_ids)
        attach_adapters(lrm.model, code_ids_C, rank=config.adapter_rank, seed=seed)
    lrm.model.to("cuda" if torch.cuda.is_available() else "cpu")


def make_optimizer(lrm: Lrm, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over all weights that learn; only matrices decay.

    A group's `rate_share` is what `train_on` multiplies the learning rate of a step by.
    """
    named = [each for each in lrm.model.named_parameters() if each[1].requires_grad]
    codes = [parameter for name, parameter in named if name.endswith(CODE_ROWS)]
    others = [parameter for name, parameter in named if not name.endswith(CODE_ROWS)]
    groups: list[dict[str, Any]] = [
        {"params": [one for one in others if one.ndim >= 2], "rate_share": 1.0},
        {"params": [one for one in others if one.ndim < 2], "rate_share": 1.0, "weight_decay": 0.0},
        {"params": codes, "rate_share": config.code_rate},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.round_learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=True,
    )


def initial_learning_rate(config: TrainingConfig, step: int, num_steps: int) -> float:
    """Return the initial fit's learning rate: linear warm-up, then cosine down to that of the rounds."""
    warmup = max(1, round(config.warmup_share * num_steps))
    if step < warmup:
        return config.peak_learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return (
        config.round_learning_rate + (config.peak_learning_rate - config.round_learning_rate) * fall
    )


def batch_loss(lrm: Lrm, blocks: Sequence[Block], *, bfloat16: bool = False) -> Tensor:
    """Return the weighted mean cross-entropy, in nats, over the labelled tokens of some blocks.

    Logits are computed for the labelled positions only: behind a history of fifty watches that is a fraction.
    """
    device = lrm.model.device
    batch = collate(blocks, pad_token_id=lrm.pad_token_id)
    labels_BT = batch.labels_BT.to(device)
    wanted_BT = labels_BT[:, 1:] != IGNORED
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        hidden_BTD = lrm.model.base_model(
            input_ids=batch.token_ids_BT.to(device),
            position_ids=batch.position_ids_BT.to(device),
            attention_mask=batch.mask_B1TT.to(device),
            use_cache=False,
        ).last_hidden_state
        logits_NV = lrm.model.get_output_embeddings()(hidden_BTD[:, :-1][wanted_BT])
    losses_N = cross_entropy(logits_NV.float(), labels_BT[:, 1:][wanted_BT], reduction="none")
    weights_N = batch.weights_BT.to(device)[:, 1:][wanted_BT]
    return (losses_N * weights_N).sum() / weights_N.sum()


def train_on(
    lrm: Lrm,
    optimizer: torch.optim.AdamW,
    blocks: Sequence[Block],
    config: TrainingConfig,
    *,
    learning_rate: Callable[[int, int], float] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    part: Part | None = None,
    seed: int = 0,
    is_over: Callable[[], bool] | None = None,
) -> list[float]:
    """Make one pass over the blocks and return the loss of each step.

    Args:
        lrm: as `prepare` left it; its weights change in place, and adapters are folded into them at the end.
        optimizer: as `make_optimizer` returns it.
        blocks: in the order of training.
        config: batch size and clipping.
        learning_rate: (step, steps) to a rate; by default that of the rounds.
        on_step: told (step, steps, loss) after each step.
        part: of each step that is computed here, while the other workers compute theirs; None: all of it. Losses and
            weights are those of one worker, but for the order in which numbers are added and what is dropped out.
        seed: of what is dropped out; other passes should have other seeds.
        is_over: asked before each step; a pass that is over ends early.
    """
    groups = [
        blocks[start : start + config.blocks_per_step]
        for start in range(0, len(blocks), config.blocks_per_step)
    ]
    losses = []
    lrm.model.train()
    seed += 0 if part is None else 2**32 * part.rank
    with training_kernels(lrm.model), dropped_out(lrm.model, config.dropout, seed=seed):
        for step, group in enumerate(groups):
            if is_over is not None and is_over():
                break
            rate = learning_rate(step, len(groups)) if learning_rate else config.round_learning_rate
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate * parameters["rate_share"]
            loss = _backward(lrm, group, config, part)
            torch.nn.utils.clip_grad_norm_(lrm.model.parameters(), config.gradient_norm_max)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss)
            if on_step is not None:
                on_step(step + 1, len(groups), losses[-1])
    lrm.model.eval()
    fold(lrm.model)
    return losses


def _backward(
    lrm: Lrm, blocks: Sequence[Block], config: TrainingConfig, part: Part | None
) -> float:
    """Leave the gradients of the blocks' mean loss in the model and return that loss."""
    if part is None:
        loss = batch_loss(lrm, blocks, bfloat16=config.bfloat16)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
    mine = blocks[part.rank :: part.of]
    total = _weight_of(blocks)
    share = _weight_of(mine) / total if total else 0.0
    loss = torch.zeros((), device=lrm.model.device)
    if mine:
        loss = share * batch_loss(lrm, mine, bfloat16=config.bfloat16)
        loss.backward()  # type: ignore[no-untyped-call]
    return _add_up(lrm, loss.detach())


def _weight_of(blocks: Sequence[Block]) -> float:
    return sum(float(block.weights_T[block.labels_T != IGNORED].sum()) for block in blocks)


def _add_up(lrm: Lrm, loss: Tensor) -> float:
    """Sum gradients and loss over all workers, in one message; who had no block adds zeros."""
    learned = [each for each in lrm.model.parameters() if each.requires_grad]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in learned]
    everything = torch.cat([loss.view(1), *(each.flatten() for each in gradients)])
    distributed.all_reduce(everything)
    sizes = [1, *(each.numel() for each in learned)]
    summed, *parts = torch.split(everything, sizes)
    for parameter, gradient in zip(learned, parts, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return float(summed)


@torch.inference_mode()
def evaluate_loss(lrm: Lrm, blocks: Sequence[Block], *, blocks_per_step: int = 8) -> float:
    """Return the mean loss over blocks without learning from them; the mean is over groups of blocks."""
    with training_kernels(lrm.model):
        losses = [
            float(batch_loss(lrm, blocks[start : start + blocks_per_step]))
            for start in range(0, len(blocks), blocks_per_step)
        ]
    return sum(losses) / max(1, len(losses))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state under the parameters' names, ready for a safetensors file."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}:{name}"] = value.detach().clone().contiguous()
    return tensors


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned."""
    named = dict(model.named_parameters())
    for key_and_name, value in tensors.items():
        key, name = key_and_name.split(":", 1)
        optimizer.state[named[name]][key] = value.to(named[name].device, copy=True)

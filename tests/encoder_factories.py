"""Folders of tiny encoders of a user's own, whose vectors one can work out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from models.encoder_manifest import MANIFEST_FILE

WORDS = {"<pad>": 0, "<unk>": 1, "red": 2, "green": 3, "blue": 4}
# Word -> vector: word 2 is [2, 0, 1], word 3 is [0, 3, 1] and so on; padding would be far off.
WORD_VECTORS = np.array(
    [[900, 900, 900], [1, 1, 1], [2, 0, 1], [0, 3, 1], [-4, 0, 1]], dtype=np.float32
)

Batch = int | str


def entries() -> dict[str, dict[str, Any]]:
    """What the tiny encoders declare, without hashes."""
    return {
        "text": {
            "name": "words",
            "modality": "text",
            "file": "text.onnx",
            "dimension": 3,
            "inputs": {"input_ids": "ids", "attention_mask": "mask"},
            "output": "hidden",
            "preprocessing": {"tokenizer": "words.json", "tokens_max": 4, "pooling": "mean"},
        },
        "frames": {
            "name": "colours",
            "modality": "frames",
            "file": "frames.onnx",
            "dimension": 3,
            "inputs": {"frames": "pixels"},
            "output": "colour",
            "preprocessing": {
                "size": 8,
                "layout": "NCHW",
                "dtype": "float32",
                "scale": 1 / 255,
                "mean": [0.5, 0.25, 0.0],
                "std": [0.5, 0.25, 0.125],
            },
        },
        "audio": {
            "name": "bands",
            "modality": "audio",
            "file": "audio.onnx",
            "dimension": 64,
            "inputs": {"patches": "mel"},
            "output": "bands",
            "preprocessing": {"log_offset": 0.01, "patch_hop_windows": 96, "patch_shape": [96, 64]},
        },
    }


def write_own(
    folder: Path,
    *,
    modalities: Sequence[str] = ("text", "frames", "audio"),
    batch: Batch = "B",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write tiny encoders and a manifest without hashes; `changes` replace keys of one's declaration."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {"text": text_graph(batch), "frames": frame_graph(batch), "audio": audio_graph(batch)}
    for modality in modalities:
        onnx.save(graphs[modality], folder / f"{modality}.onnx")
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "words.json"))
    declared = [
        entries()[modality] | dict((changes or {}).get(modality, {})) for modality in modalities
    ]
    write_manifest(folder, declared)
    return folder


def write_manifest(folder: Path, encoders: Sequence[Any]) -> None:
    document = {"format": 2, "encoders": list(encoders)}
    (folder / MANIFEST_FILE).write_text(json.dumps(document))


def text_graph(
    batch: Batch = "B",
    *,
    tokens: Batch = "T",
    integers: int = TensorProto.INT64,
    type_ids: bool = False,
) -> onnx.ModelProto:
    """Each token's word vector: [B, T] -> [B, T, 3]; type ids of one would move it by 1000."""
    nodes = [helper.make_node("Gather", ["words", "ids"], ["hidden" if not type_ids else "plain"])]
    names = ["ids", "mask"]
    if type_ids:
        names.append("types")
        nodes += [
            helper.make_node("Cast", ["types"], ["moved"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["moved", "thousand"], ["far"]),
            helper.make_node("Unsqueeze", ["far", "last"], ["wide"]),
            helper.make_node("Add", ["plain", "wide"], ["hidden"]),
        ]
    # A graph without a use of its mask: pooling must not need one.
    nodes.append(helper.make_node("Identity", ["mask"], ["mask_again"]))
    return model(
        nodes,
        [helper.make_tensor_value_info(name, integers, [batch, tokens]) for name in names],
        [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [batch, tokens, 3]),
            helper.make_tensor_value_info("mask_again", integers, [batch, tokens]),
        ],
        {
            "words": WORD_VECTORS,
            "thousand": np.float32(1000.0),
            "last": np.array([2], np.int64),
        },
    )


def frame_graph(
    batch: Batch = "B", *, pixels: int = TensorProto.FLOAT, shape: Sequence[int] = (3, 8, 8)
) -> onnx.ModelProto:
    """The mean of each channel, [B, 3, 8, 8] -> [B, 3, 1, 1], as a network's last pooling leaves it."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["floats"], ["colour"]),
    ]
    return model(
        nodes,
        [helper.make_tensor_value_info("pixels", pixels, [batch, *shape])],
        [helper.make_tensor_value_info("colour", TensorProto.FLOAT, None)],
        {},
    )


def audio_graph(batch: Batch = "B") -> onnx.ModelProto:
    """The mean of each mel band: [B, 96, 64] -> [B, 64]."""
    return model(
        [helper.make_node("ReduceMean", ["mel", "axis"], ["bands"], keepdims=0)],
        [helper.make_tensor_value_info("mel", TensorProto.FLOAT, [batch, 96, 64])],
        [helper.make_tensor_value_info("bands", TensorProto.FLOAT, [batch, 64])],
        {"axis": np.array([1], np.int64)},
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, Any],
) -> onnx.ModelProto:
    tensors = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    ]
    graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

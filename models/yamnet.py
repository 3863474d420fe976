"""Makes the quantised YAMNet of a wheel take float patches and give embeddings; knows nothing of sound.

Source: Hershey et al. 2017; YAMNet, tensorflow/models.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.log_mel import YAMNET

_EMBEDDING = "/model/Reshape_output_0"


def yamnet(archive: Path, *, batched: bool = True) -> onnx.ModelProto:
    """Return YAMNet with the input `log_mel` and the outputs `vectors` and `class_logits`.

    As shipped it takes one quantised patch and gives nothing but AudioSet scores. Unless `batched`, it still takes
    one patch at a time.

    Shapes: log_mel float32 [B, 1, 96, 64] -> vectors float32 [B, 1024], class_logits float32 [B, 521].
    """
    model = _unpack(archive)
    graph = model.graph
    quantize = ["log_mel", "audio_scale", "audio_zero_point"]
    graph.node.insert(0, helper.make_node("QuantizeLinear", quantize, ["audio"]))
    graph.node.append(helper.make_node("Identity", [_EMBEDDING], ["vectors"]))
    graph.node.append(helper.make_node("Identity", ["class_scores_updated"], ["class_logits"]))

    # Everything that states the batch of one: the shape of the last reshape, and the declared shapes.
    if batched:
        (reshape,) = (node for node in graph.node if node.op_type == "Reshape")
        (shape,) = (tensor for tensor in graph.initializer if tensor.name == reshape.input[1])
        shape.CopyFrom(numpy_helper.from_array(np.array([-1, 1024], np.int64), shape.name))
    for declared in (graph.value_info, graph.input, graph.output):
        del declared[:]
    batch: str | int = "batch" if batched else 1
    graph.input.append(_float_tensor("log_mel", batch, *YAMNET.patch_shape))
    graph.output.append(_float_tensor("vectors", batch, 1024))
    graph.output.append(_float_tensor("class_logits", batch, 521))
    onnx.checker.check_model(model)
    return model


def _unpack(archive: Path) -> onnx.ModelProto:
    """Load a zipped graph and the weights beside it into one model."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as unzipped:
        unzipped.extractall(folder)
        (file,) = Path(folder).rglob("*.onnx")
        return onnx.load(file)


def _float_tensor(name: str, *dimensions: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dimensions))

"""Tiny graphs, run by ONNX Runtime as they are declared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infra.errors import ConfigError
from models.encoder_graphs import AudioGraph, FrameGraph, TextGraph
from models.encoder_manifest import AudioSpec, FrameSpec, TextSpec, read_specs
from models.log_mel import log_mel_patches
from tests.encoder_factories import (
    Batch,
    audio_graph,
    entries,
    frame_graph,
    model,
    text_graph,
    write_own,
)

TEXTS = ["red", "red green green", "blue", " ", "green unheard"]
SECOND = 16_000


def open_text(folder: Path, graph: onnx.ModelProto | None = None, **changes: Any) -> TextGraph:
    preprocessing = entries()["text"]["preprocessing"] | changes.pop("preprocessing", {})
    write_own(folder, changes={"text": {"preprocessing": preprocessing, **changes}})
    if graph is not None:
        onnx.save(graph, folder / "text.onnx")
    (spec, _, _) = read_specs(folder)
    assert isinstance(spec, TextSpec)
    return TextGraph(folder, spec)


def open_frames(folder: Path, graph: onnx.ModelProto | None = None, **changes: Any) -> FrameGraph:
    preprocessing = entries()["frames"]["preprocessing"] | changes.pop("preprocessing", {})
    write_own(folder, changes={"frames": {"preprocessing": preprocessing, **changes}})
    if graph is not None:
        onnx.save(graph, folder / "frames.onnx")
    (_, spec, _) = read_specs(folder)
    assert isinstance(spec, FrameSpec)
    return FrameGraph(folder, spec)


def open_audio(folder: Path, batch: Batch = "B") -> AudioGraph:
    write_own(folder, batch=batch)
    (_, _, spec) = read_specs(folder)
    assert isinstance(spec, AudioSpec)
    return AudioGraph(folder, spec)


def directions(*rows: list[float]) -> np.ndarray:
    values = np.array(rows, np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_mean_pooling_leaves_padding_out(tmp_path: Path) -> None:
    found = open_text(tmp_path).encode(TEXTS)
    assert_near(found, directions([2, 0, 1], [2, 6, 3], [-4, 0, 1], [0, 0, 0], [1, 4, 2]))


def test_cls_pooling_takes_the_first_token(tmp_path: Path) -> None:
    found = open_text(tmp_path, preprocessing={"pooling": "cls"}).encode(TEXTS)
    assert_near(found, directions([2, 0, 1], [2, 0, 1], [-4, 0, 1], [0, 0, 0], [0, 3, 1]))


def test_text_longer_than_declared_is_cut_off(tmp_path: Path) -> None:
    found = open_text(tmp_path, preprocessing={"tokens_max": 2}).encode(["red red green green"])
    assert_near(found, directions([2, 0, 1]))


@pytest.mark.parametrize(
    ("graph", "inputs"),
    [
        (text_graph(1), {}),
        (text_graph(1, tokens=4), {}),
        (text_graph(tokens=7), {}),
        (text_graph(integers=TensorProto.INT32), {}),
        (text_graph(type_ids=True), {"token_type_ids": "types"}),
    ],
    ids=["batch of one", "one of four tokens", "seven tokens", "int32", "token types"],
)
def test_text_graph_of_another_shape_gives_the_same_vectors(
    graph: onnx.ModelProto, inputs: dict[str, str], tmp_path: Path
) -> None:
    expected = open_text(tmp_path / "plain").encode(TEXTS)
    declared = entries()["text"]["inputs"] | inputs
    assert_near(open_text(tmp_path / "other", graph, inputs=declared).encode(TEXTS), expected)


def test_no_text_at_all_gives_no_vectors(tmp_path: Path) -> None:
    assert open_text(tmp_path).encode([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "graph", "message"),
    [
        ({"dimension": 5}, None, r"declares dimension 5, its output 'hidden' gives vectors of \[3\]"),
        ({"output": "vectors"}, None, r"output \['vectors'\], its graph has \['hidden', 'mask_again'\]"),
        ({}, text_graph(type_ids=True), r"inputs \['ids', 'mask'\], its graph has \['ids', 'mask', 'types'\]"),
        ({"output": "mask_again"}, None, r"takes an output of one vector per token.* has shape \[2, 4\]"),
        ({}, text_graph(3), "takes batches of 3 only"),
        ({}, text_graph(tokens=3), "tokens_max 4, its graph takes 3 tokens"),
    ],
)  # fmt: skip
def test_text_graph_that_is_not_as_declared_is_refused(
    changes: dict[str, Any], graph: onnx.ModelProto | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"encoder words.*{message}"):
        open_text(tmp_path, graph, **changes)


def test_tokenizer_with_more_words_than_the_graph_is_refused(tmp_path: Path) -> None:
    graph = text_graph()
    (words,) = (tensor for tensor in graph.graph.initializer if tensor.name == "words")
    smaller = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(words)[:4], "words")
    words.CopyFrom(smaller)
    with pytest.raises(ConfigError, match="refuses what its declaration makes of a probe"):
        open_text(tmp_path, graph)


@pytest.mark.parametrize("content", ["[PAD]\n[UNK]\n", '{"do_lower_case": true}', "3"])
def test_tokenizer_of_another_library_is_refused(content: str, tmp_path: Path) -> None:
    write_own(tmp_path)
    (tmp_path / "words.json").write_text(content)
    spec = read_specs(tmp_path)[0]
    assert isinstance(spec, TextSpec)
    with pytest.raises(ConfigError, match=r"words\.json is no tokenizer"):
        TextGraph(tmp_path, spec)


def clip(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in colours])


@pytest.mark.parametrize("batch", ["B", 1])
def test_frames_are_normalised_as_declared_and_their_mean_has_unit_length(
    batch: Batch, tmp_path: Path
) -> None:
    graph = open_frames(tmp_path, frame_graph(batch))
    found = graph.encode([clip((255, 255, 51), (255, 51, 51)), None, clip((0, 0, 0))])
    # (1 - .5) / .5, (1 or .2 - .25) / .25, .2 / .125
    assert_near(found, directions([1, (3 - 0.2) / 2, 1.6], [0, 0, 0], [-1, -1, 0]))


def test_frames_as_bgr_have_their_channels_turned_round(tmp_path: Path) -> None:
    plain = {"colour": "bgr", "mean": [0, 0, 0], "std": [1, 1, 1]}
    found = open_frames(tmp_path, preprocessing=plain).encode([clip((255, 102, 51))])
    assert_near(found, directions([0.2, 0.4, 1]))


def test_frames_as_bytes_go_in_as_they_are(tmp_path: Path) -> None:
    graph = model(
        [
            helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "sides"], ["colour"], keepdims=0),
        ],
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 8, 8, 3])],
        [helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["B", 3])],
        {"sides": np.array([1, 2], np.int64)},
    )
    write_own(tmp_path)
    bytes_in = {"size": 8, "layout": "NHWC", "dtype": "uint8"}
    write_own(tmp_path, changes={"frames": {"preprocessing": bytes_in}})
    onnx.save(graph, tmp_path / "frames.onnx")
    spec = read_specs(tmp_path)[1]
    assert isinstance(spec, FrameSpec)
    found = FrameGraph(tmp_path, spec).encode([clip((200, 100, 50))])
    assert_near(found, directions([4, 2, 1]))


def test_many_frames_equal_the_same_frames_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (length, 8, 8, 3), np.uint8) for length in (1, 40, 3)]
    graph = open_frames(tmp_path)
    alone = [graph.encode([each]) for each in clips]
    assert_near(graph.encode(clips), np.concatenate(alone))


@pytest.mark.parametrize(
    ("preprocessing", "graph", "message"),
    [
        ({"layout": "NHWC"}, None, "refuses what its declaration makes of a probe: .*index: 1 Got: 8"),
        ({"size": 16}, None, "refuses what its declaration makes of a probe: .*index: 2 Got: 16"),
        ({}, frame_graph(pixels=TensorProto.UINT8), r"expected: \(tensor\(uint8\)\)"),
    ],
)  # fmt: skip
def test_frame_graph_that_is_not_as_declared_is_refused(
    preprocessing: dict[str, Any], graph: onnx.ModelProto | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"(?s)encoder colours.*{message}"):
        open_frames(tmp_path, graph, preprocessing=preprocessing)


def test_graph_that_mixes_up_its_batch_is_refused(tmp_path: Path) -> None:
    graph = frame_graph()
    graph.graph.node.append(helper.make_node("ReduceMean", ["colour"], ["all"], keepdims=1))
    graph.graph.output[0].name = "all"
    with pytest.raises(ConfigError, match=r"2 rows gave an output of shape \[1, 1, 1, 1\]"):
        open_frames(tmp_path, graph, output="all")


def test_graph_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    graph = frame_graph()
    graph.graph.node.append(helper.make_node("Sub", ["colour", "colour"], ["zero"]))
    graph.graph.node.append(helper.make_node("Div", ["zero", "zero"], ["nan"]))
    graph.graph.output[0].name = "nan"
    with pytest.raises(ConfigError, match="not finite"):
        open_frames(tmp_path, graph, output="nan")


def test_graph_with_an_operator_of_another_library_is_refused(tmp_path: Path) -> None:
    graph = frame_graph()
    graph.graph.node[0].domain = "ai.mine"
    graph.opset_import.append(helper.make_opsetid("ai.mine", 1))
    with pytest.raises(ConfigError, match="operators of other libraries are not supported"):
        open_frames(tmp_path, graph)


@pytest.mark.parametrize("batch", ["B", 1])
def test_sound_is_heard_through_the_declared_log_mel(batch: Batch, tmp_path: Path) -> None:
    waveform = np.sin(np.arange(3 * SECOND, dtype=np.float32) / 10)
    graph = open_audio(tmp_path, batch)
    patches = graph.patches(waveform)
    assert patches.shape == (3, 96, 64)
    expected = patches.mean(axis=(0, 1))
    (found,) = graph.encode([patches])
    assert_near(found, expected / np.linalg.norm(expected))
    default = log_mel_patches(waveform)
    assert len(default) > len(patches)
    assert default.min() < patches.min()  # the smaller offset


def test_audio_graph_for_another_patch_is_refused(tmp_path: Path) -> None:
    write_own(tmp_path)
    onnx.save(audio_graph(), tmp_path / "audio.onnx")
    spec = read_specs(tmp_path)[2]
    assert isinstance(spec, AudioSpec)
    shaped = dataclasses.replace(spec.preprocessing, patch_shape=(1, 96, 64))
    with pytest.raises(ConfigError, match="Invalid rank for input: mel"):
        AudioGraph(tmp_path, dataclasses.replace(spec, preprocessing=shaped))

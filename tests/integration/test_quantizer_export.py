"""The quantizer in ONNX Runtime against the same one in torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from infra.errors import DecodeError, VersionMismatchError
from models.codebook import CodebookManifest
from models.encoders import MODALITIES, Embeddings
from models.onnx_quantizer import OnnxQuantizer
from models.quantizer import Quantizer, QuantizerConfig
from models.quantizer_export import export_quantizer
from models.quantizer_fit import fit_quantizer

pytestmark = pytest.mark.integration

DIMENSIONS = {"text": 384, "frames": 1280, "audio": 1024}
NEAR_TIE = 1e-4  # relative margin below which both codes are right


def random_embeddings(num_videos: int, *, seed: int) -> Embeddings:
    """Unit vectors with every mixture of modalities in them."""
    rng = np.random.default_rng(seed)
    present_BM = rng.random((num_videos, 3)) < 0.6
    present_BM[~present_BM.any(axis=1), 0] = True
    rows = {}
    for index, (modality, dimension) in enumerate(DIMENSIONS.items()):
        values = rng.standard_normal((num_videos, dimension)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        values[~present_BM[:, index]] = 0
        rows[f"{modality}_BD"] = values
    return Embeddings(**rows, present_BM=present_BM)


def rows_of(embeddings: Embeddings, rows: slice) -> Embeddings:
    return Embeddings(
        embeddings.text_BD[rows],
        embeddings.frames_BD[rows],
        embeddings.audio_BD[rows],
        embeddings.present_BM[rows],
    )


def manifest_of(config: QuantizerConfig, codebook_version: int) -> CodebookManifest:
    return CodebookManifest(
        codebook_version=codebook_version,
        codebook_sizes=config.codebook_sizes,
        disambiguation_size=64,
        embedding_dim=config.embedding_dim,
        encoders_sha256="",
        quantizer={},
        card={},
        files={},
    )


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    return fit_quantizer(random_embeddings(1500, seed=0), seed=0)


@pytest.fixture(scope="module")
def graph(quantizer: Quantizer) -> bytes:
    return export_quantizer(quantizer, codebook_version=4)


@pytest.fixture(scope="module")
def exported(quantizer: Quantizer, graph: bytes) -> OnnxQuantizer:
    return OnnxQuantizer(manifest_of(quantizer.config, 4), graph)


def is_near_tie(quantizer: Quantizer, embedding_D: torch.Tensor, codes_L: list[int]) -> bool:
    """Whether some level had two codes to choose from, walking down the levels along these codes."""
    residual_D = embedding_D
    for level, code in enumerate(codes_L):
        codebook_KD = quantizer.get_buffer(f"codebook_{level}")
        best, second = (codebook_KD - residual_D).square().sum(1).topk(2, largest=False).values
        if (second - best) < NEAR_TIE * second:
            return True
        residual_D = residual_D - codebook_KD[code]
    return False


def test_exported_codes_equal_torchs_but_for_near_ties(
    quantizer: Quantizer, exported: OnnxQuantizer
) -> None:
    embeddings = random_embeddings(3000, seed=1)
    rows = [torch.from_numpy(getattr(embeddings, f"{name}_BD")) for name in MODALITIES]
    with torch.inference_mode():
        expected = quantizer(*rows, torch.from_numpy(embeddings.present_BM))
    found = exported.quantize(embeddings)

    differing = np.flatnonzero((found.codes_BL != expected.codes_BL.numpy()).any(axis=1))
    assert len(differing) <= 3
    for row in differing:
        codes_L = expected.codes_BL[row].tolist()
        assert is_near_tie(quantizer, expected.embedding_BD[row], codes_L)
    np.testing.assert_allclose(found.embedding_BD, expected.embedding_BD, atol=1e-3)
    same = np.setdiff1d(np.arange(3000), differing)
    np.testing.assert_allclose(
        found.residual_norm_B[same], expected.residual_norm_B[same], rtol=1e-3, atol=1e-5
    )


def test_codes_do_not_depend_on_the_batch_a_video_comes_in(exported: OnnxQuantizer) -> None:
    embeddings = random_embeddings(200, seed=2)
    together = exported.quantize(embeddings)
    one_by_one = [
        exported.quantize(rows_of(embeddings, slice(row, row + 1))).codes_BL[0]
        for row in range(200)
    ]
    assert (together.codes_BL == np.stack(one_by_one)).all(axis=1).mean() >= 0.99


def test_batch_of_no_videos_gives_no_codes(exported: OnnxQuantizer) -> None:
    quantized = exported.quantize(rows_of(random_embeddings(2, seed=3), slice(0, 0)))
    assert len(quantized) == 0
    assert quantized.split() == []


def test_embedding_that_is_not_finite_is_refused(exported: OnnxQuantizer) -> None:
    embeddings = random_embeddings(3, seed=4)
    embeddings.text_BD[1, 5] = np.nan
    with pytest.raises(DecodeError) as refusal:
        exported.quantize(embeddings)
    assert refusal.value.reason == "nan_embedding"


def test_video_without_any_modality_is_refused(exported: OnnxQuantizer) -> None:
    embeddings = random_embeddings(3, seed=5)
    embeddings.present_BM[2] = False
    with pytest.raises(DecodeError) as refusal:
        exported.quantize(embeddings)
    assert refusal.value.reason == "no_content"


def test_graph_is_one_file_that_says_which_codebook_it_is(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "codebook_version": "4",
        "codebook_sizes": "256,128,64",
        "embedding_dim": "64",
    }
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_graph_of_another_codebook_is_refused(quantizer: Quantizer, graph: bytes) -> None:
    with pytest.raises(VersionMismatchError, match="'codebook_version': '4'"):
        OnnxQuantizer(manifest_of(quantizer.config, 5), graph)

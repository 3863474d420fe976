"""The quantizer in ONNX Runtime against the same one in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from infra.errors import DecodeError, VersionMismatchError
from models.codebook import CodebookManifest
from models.encoders import MODALITIES, Content, Embeddings, Encoders
from models.media import decode_media
from models.onnx_quantizer import OnnxQuantizer
from models.quantizer import METHODS, Method, Quantizer, QuantizerConfig
from models.quantizer_export import export_quantizer
from models.quantizer_fit import fit_quantizer
from streams.movielens import FOLDER, load_timeline

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


@pytest.fixture(scope="module", params=METHODS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    config = QuantizerConfig(method=request.param, steps=30)
    return fit_quantizer(random_embeddings(1500, seed=0), config=config, seed=0)


@pytest.fixture(scope="module")
def graph(quantizer: Quantizer) -> bytes:
    return export_quantizer(quantizer, codebook_version=4)


@pytest.fixture(scope="module")
def exported(quantizer: Quantizer, graph: bytes) -> OnnxQuantizer:
    return OnnxQuantizer(manifest_of(quantizer.config, 4), graph)


def tensors(embeddings: Embeddings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    text, frames, audio = (
        torch.from_numpy(getattr(embeddings, f"{name}_BD")) for name in MODALITIES
    )
    return text, frames, audio


def has_near_tie(quantizer: Quantizer, embeddings: Embeddings) -> bool:
    """Whether one video has two codes to choose from on some level, walking down along torch's codes."""
    present_BM = torch.from_numpy(embeddings.present_BM)
    fused = quantizer.fuse(tensors(embeddings), present_BM)
    codes = quantizer.quantize(fused, present_BM)[0][0].tolist()
    row_D = fused.embedding_BD[0]
    if quantizer.config.method == "rqvae":
        row_D = quantizer.vae.place(fused.embedding_BD, present_BM)[0]
    for level, code in enumerate(codes):
        codebook_KD = quantizer.get_buffer(f"codebook_{level}")
        best, second = (codebook_KD - row_D).square().sum(1).topk(2, largest=False).values
        if (second - best) < NEAR_TIE * second:
            return True
        if quantizer.config.method == "rqvae" and level == 0:
            coarse_BD = codebook_KD[code].unsqueeze(0)
            place_BD = row_D.unsqueeze(0)
            inputs_BI = quantizer.vae.inputs(fused.detail_BE, place_BD, coarse_BD)
            row_D = quantizer.vae.encode(inputs_BI)[0]
        else:
            row_D = row_D - codebook_KD[code]
    return False


def test_exported_outputs_equal_torchs_but_for_near_ties(
    quantizer: Quantizer, exported: OnnxQuantizer
) -> None:
    embeddings = random_embeddings(3000, seed=1)
    with torch.inference_mode():
        expected = quantizer(*tensors(embeddings), torch.from_numpy(embeddings.present_BM))
    found = exported.quantize(embeddings)

    assert found.codes_BL.dtype == found.cluster_id_B.dtype == np.int64
    differing = np.flatnonzero((found.codes_BL != expected.codes_BL.numpy()).any(axis=1))
    assert len(differing) <= 3
    for row in differing:
        assert has_near_tie(quantizer, rows_of(embeddings, slice(row, row + 1)))
    np.testing.assert_allclose(found.embedding_BD, expected.embedding_BD, atol=1e-3)
    same = np.setdiff1d(np.arange(3000), differing)
    np.testing.assert_allclose(
        found.residual_norm_B[same], expected.residual_norm_B[same], rtol=1e-3, atol=1e-5
    )
    assert (found.cluster_id_B != expected.cluster_id_B.numpy()).sum() <= 3


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


def test_embedding_that_overflows_in_the_fusion_is_refused(exported: OnnxQuantizer) -> None:
    embeddings = random_embeddings(3, seed=4)
    embeddings.text_BD[1] = np.where(np.arange(384) % 2, 3e38, -3e38)
    embeddings.present_BM[1, 0] = True
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
        "num_clusters": "256",
    }
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_graph_of_another_codebook_is_refused(quantizer: Quantizer, graph: bytes) -> None:
    with pytest.raises(VersionMismatchError, match="'codebook_version': '4'"):
        OnnxQuantizer(manifest_of(quantizer.config, 5), graph)


TITLES = {
    "nasa_13013.mp4": (
        "NASA: astronauts at work outside the space station",
        "Spacewalk seen from the International Space Station",
        "How NASA sends rockets and satellites into orbit",
        "A mission of the space agency, from launch to landing",
    ),
    "bigbuckbunny.mp4": (
        "Big Buck Bunny, an animated short film",
        "The giant rabbit and the butterfly, a cartoon",
        "Animated bunny takes revenge on three rodents",
        "Open movie: a big rabbit in the forest",
    ),
}


@pytest.fixture(scope="module")
def catalogue(encoders_directory: Path) -> Embeddings:
    """600 films of which only the title is known, then eight videos with frames and sound, then these without."""
    films = [event.title for event in load_timeline().uploads() if event.type == "uploaded"][:600]
    contents = [Content(title) for title in films]
    for name, titles in TITLES.items():
        media = decode_media(FOLDER.parent / "clips" / name)
        contents += [Content(title, media.frames, media.waveform) for title in titles]
    contents += [Content(title) for titles in TITLES.values() for title in titles]
    return Encoders(encoders_directory).encode(contents)


@pytest.mark.parametrize("method", METHODS)
def test_video_with_only_a_title_lands_near_the_same_video_with_its_media(
    catalogue: Embeddings, method: Method
) -> None:
    config = QuantizerConfig(method=method, codebook_sizes=(32, 16, 8), steps=120)
    fitted = fit_quantizer(rows_of(catalogue, slice(0, 608)), config=config, seed=0)
    exported = OnnxQuantizer(manifest_of(config, 1), export_quantizer(fitted, codebook_version=1))
    films, whole, title_only = (
        exported.quantize(rows_of(catalogue, slice(*ends)))
        for ends in ((0, 600), (600, 608), (608, 616))
    )
    titles_BD = title_only.embedding_BD.astype(np.float32)
    to_whole_B = (titles_BD * whole.embedding_BD).sum(axis=1)
    to_films_BN = titles_BD @ films.embedding_BD.T.astype(np.float32)
    assert (to_films_BN < to_whole_B[:, None]).mean() > 0.99
    # One of 32 codes by chance: 8 videos would share a quarter of a code.
    assert (title_only.codes_BL[:, 0] == whole.codes_BL[:, 0]).sum() >= 3

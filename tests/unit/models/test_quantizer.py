from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.encoders import Embeddings, Modality
from models.quantizer import LEVEL_SIZES, METHODS, Method, Quantizer, QuantizerConfig
from models.quantizer_fit import fit_quantizer
from models.semantic_id import SemanticIdSpace

RKMEANS = QuantizerConfig(
    method="rkmeans", codebook_sizes=(16, 8, 4), embedding_dim=8, kmeans_iterations=8
)
RQVAE = replace(RKMEANS, method="rqvae", latent_dim=4, hidden_dim=16, steps=24, batch_size=64)
CONFIGS: dict[Method, QuantizerConfig] = {"rqvae": RQVAE, "rkmeans": RKMEANS}
DIMENSIONS: dict[Modality, int] = {"text": 24, "frames": 40, "audio": 32}


def random_embeddings(
    num_videos: int, *, seed: int = 0, with_media: int | None = None
) -> Embeddings:
    """Unit vectors; the first `with_media` videos (or all) have frames and audio too."""
    rng = np.random.default_rng(seed)
    with_media = num_videos if with_media is None else with_media
    present_BM = np.ones((num_videos, 3), bool)
    present_BM[with_media:, 1:] = False
    rows = {}
    for index, (modality, dimension) in enumerate(DIMENSIONS.items()):
        values = rng.standard_normal((num_videos, dimension)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        values[~present_BM[:, index]] = 0
        rows[f"{modality}_BD"] = values
    return Embeddings(**rows, present_BM=present_BM)


def tensors(embeddings: Embeddings) -> tuple[torch.Tensor, ...]:
    names = ("text_BD", "frames_BD", "audio_BD", "present_BM")
    return tuple(torch.from_numpy(getattr(embeddings, name)) for name in names)


@pytest.fixture(scope="module", params=METHODS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return fit_quantizer(random_embeddings(400), config=CONFIGS[request.param], seed=1)


def greedy(quantizer: Quantizer, row_D: torch.Tensor, levels: range) -> list[int]:
    """The slow, obvious way: level by level, the code vector that is nearest to what is left."""
    codes = []
    for level in levels:
        codebook_KD = quantizer.get_buffer(f"codebook_{level}")
        codes.append(int((codebook_KD - row_D).norm(dim=1).argmin()))
        row_D = row_D - codebook_KD[codes[-1]]
    return codes


def test_rkmeans_codes_equal_a_greedy_search_level_by_level() -> None:
    quantizer = fit_quantizer(random_embeddings(400), config=RKMEANS, seed=1)
    coded = quantizer(*tensors(random_embeddings(50, seed=2)))
    for codes_L, embedding_D, norm in zip(
        coded.codes_BL.tolist(), coded.embedding_BD, coded.residual_norm_B, strict=True
    ):
        assert codes_L == greedy(quantizer, embedding_D, range(3))
        left_D = embedding_D - sum(
            quantizer.get_buffer(f"codebook_{level}")[code] for level, code in enumerate(codes_L)
        )
        assert float(norm) == pytest.approx(float(left_D.norm()), abs=1e-6)


def test_rqvae_codes_level_0_by_place_and_the_rest_greedily_in_the_latent() -> None:
    quantizer = fit_quantizer(random_embeddings(400), config=RQVAE, seed=1)
    *rows, present_BM = tensors(random_embeddings(50, seed=2))
    codes_BL, embedding_BD, _, _ = quantizer(*rows, present_BM)
    fused = quantizer.fuse((rows[0], rows[1], rows[2]), present_BM)
    place_BD = quantizer.vae.place(embedding_BD, present_BM)
    coarse_BD = quantizer.get_buffer("codebook_0")[codes_BL[:, 0]]
    inputs_BI = quantizer.vae.inputs(fused.detail_BE, place_BD, coarse_BD)
    latent_BC = quantizer.vae.encode(inputs_BI)
    for row, codes_L in enumerate(codes_BL.tolist()):
        assert codes_L[:1] == greedy(quantizer, place_BD[row], range(1))
        assert codes_L[1:] == greedy(quantizer, latent_BC[row], range(1, 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_levels", [1, 3, 5, 8])
def test_quantizer_of_any_number_of_levels_gives_a_code_within_each(
    method: Method, num_levels: int
) -> None:
    sizes = (16, 8, 4, 4, 2, 2, 2, 2)[:num_levels]
    config = replace(CONFIGS[method], codebook_sizes=sizes)
    codes_BL = fit_quantizer(random_embeddings(200), config=config)(
        *tensors(random_embeddings(50, seed=2))
    ).codes_BL
    assert codes_BL.shape == (50, num_levels)
    assert codes_BL.dtype == torch.int64
    assert (codes_BL >= 0).all()
    assert (codes_BL < torch.tensor(sizes)).all()
    assert all(len(level.unique()) > 1 for level in codes_BL.T)


def test_recommended_sizes_fit_a_packed_semantic_id_and_three_levels_the_cells() -> None:
    for num_levels, sizes in LEVEL_SIZES.items():
        assert len(sizes) == num_levels
        assert sorted(sizes, reverse=True) == list(sizes)
        assert SemanticIdSpace(codebook_version=1, codebook_sizes=sizes).bits <= 63
    assert np.prod(LEVEL_SIZES[3]) <= 2**21


def test_cluster_id_is_that_of_the_nearest_centroid(quantizer: Quantizer) -> None:
    coded = quantizer(*tensors(random_embeddings(50, seed=2)))
    distance_BK = torch.cdist(coded.embedding_BD, quantizer.get_buffer("clusters"))
    assert torch.equal(coded.cluster_id_B, distance_BK.argmin(1))
    assert len(coded.cluster_id_B.unique()) > 4


def test_clusters_are_as_many_as_asked_for_but_hold_thirty_two_videos_each() -> None:
    for num_clusters, expected in ((4, 4), (100, 6)):
        config = replace(RKMEANS, num_clusters=num_clusters)
        quantizer = fit_quantizer(random_embeddings(200), config=config)
        ids = quantizer(*tensors(random_embeddings(200))).cluster_id_B
        assert set(ids.tolist()) == set(range(expected))


def test_quantizer_codes_a_video_alone_as_in_a_batch(quantizer: Quantizer) -> None:
    rows = tensors(random_embeddings(20, seed=2))
    together = quantizer(*rows)
    for index in range(20):
        alone = quantizer(*(values[index : index + 1] for values in rows))
        assert torch.equal(alone.codes_BL[0], together.codes_BL[index])
        assert alone.cluster_id_B.shape == alone.residual_norm_B.shape == (1,)


def test_quantizer_from_its_state_dict_gives_the_same_codes(quantizer: Quantizer) -> None:
    rows = tensors(random_embeddings(50, seed=2))
    loaded = Quantizer(quantizer.config, DIMENSIONS).eval()
    loaded.load_state_dict(quantizer.state_dict())
    with torch.no_grad():
        for before, after in zip(quantizer(*rows), loaded(*rows), strict=True):
            assert torch.equal(before, after)


def test_quantizer_embedding_has_length_one_whatever_is_present(quantizer: Quantizer) -> None:
    embedding_BD = quantizer(*tensors(random_embeddings(50, seed=2, with_media=20))).embedding_BD
    torch.testing.assert_close(embedding_BD.norm(dim=1), torch.ones(50))


def test_quantizer_never_reads_the_row_of_an_absent_modality(quantizer: Quantizer) -> None:
    text_BD, frames_BD, audio_BD, present_BM = tensors(random_embeddings(5, with_media=0))
    expected = quantizer(text_BD, frames_BD, audio_BD, present_BM)
    found = quantizer(text_BD, frames_BD + torch.nan, audio_BD + 7, present_BM)
    for before, after in zip(expected, found, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("modality", ["frames", "audio"])
def test_quantizer_tells_videos_apart_that_differ_in_one_modality_only(
    quantizer: Quantizer, modality: str
) -> None:
    one, other = random_embeddings(64, seed=3), random_embeddings(64, seed=4)
    rows = {"text_BD": one.text_BD, "frames_BD": one.frames_BD, "audio_BD": one.audio_BD}
    mixed = Embeddings(
        **rows | {f"{modality}_BD": getattr(other, f"{modality}_BD")}, present_BM=one.present_BM
    )
    before, after = quantizer(*tensors(one)), quantizer(*tensors(mixed))
    assert ((before.embedding_BD - after.embedding_BD).norm(dim=1) > 0.05).all()
    # Text says most, so some share all codes; one of three modalities must still move the others.
    assert (before.codes_BL != after.codes_BL).any(dim=1).float().mean() > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_fit_with_the_same_seed_gives_the_same_quantizer(method: Method) -> None:
    pairs_P2 = np.random.default_rng(0).integers(0, 100, (50, 2))

    def fitted(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed)  # whatever others draw must not matter
        config = CONFIGS[method]
        return fit_quantizer(
            random_embeddings(100), config=config, seed=seed, pairs=pairs_P2
        ).state_dict()

    first, second, other = fitted(5), fitted(5), fitted(6)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["codebook_0"], other["codebook_0"])


def test_fit_of_a_catalogue_almost_without_media_can_still_code_media() -> None:
    for config in CONFIGS.values():
        quantizer = fit_quantizer(random_embeddings(200, with_media=2), config=config, seed=1)
        coded = quantizer(*tensors(random_embeddings(50, seed=2)))
        assert torch.isfinite(coded.embedding_BD).all()
        assert torch.isfinite(coded.residual_norm_B).all()
        assert len({tuple(codes_L) for codes_L in coded.codes_BL.tolist()}) > 10


def test_fit_of_more_videos_than_it_may_use_takes_a_sample_and_its_pairs() -> None:
    config = replace(RQVAE, fit_rows_max=64)
    pairs_P2 = np.random.default_rng(0).integers(0, 200, (400, 2))
    quantizer = fit_quantizer(random_embeddings(200), config=config, pairs=pairs_P2)
    assert torch.isfinite(quantizer(*tensors(random_embeddings(200))).residual_norm_B).all()


@pytest.mark.parametrize("wrong", [[[0, 40]], [[-1, 2]], [[1, 2, 3]]])
def test_pairs_that_name_no_row_are_refused(wrong: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="rows below 40"):
        fit_quantizer(random_embeddings(40), config=RKMEANS, pairs=np.array(wrong))


def test_fit_on_fewer_videos_than_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="15 videos cannot fill a codebook of 16"):
        fit_quantizer(random_embeddings(15), config=RKMEANS)


def test_fit_reports_its_stages_in_order() -> None:
    seen: list[tuple[str, float]] = []
    fit_quantizer(
        random_embeddings(40),
        config=RQVAE,
        progress=lambda stage, share: seen.append((stage, share)),
    )
    assert list(dict.fromkeys(stage for stage, _ in seen)) == ["fusion", "clusters", "codebooks"]
    assert seen[-1] == ("codebooks", 1.0)


def test_config_survives_json() -> None:
    document = json.loads(json.dumps(RQVAE.to_json()))
    assert QuantizerConfig.from_json(document) == RQVAE


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "pq"},
        {"codebook_sizes": ()},
        {"modality_weights": (1.0, 0.0, 1.0)},
        {"whitening": 1.5},
        {"num_clusters": -1},
        {"steps": 0},
    ],
)
def test_config_with_a_wrong_value_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantizerConfig(**wrong)  # type: ignore[arg-type]  # the values are wrong on purpose

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.encoders import Embeddings
from models.quantizer import Quantizer, QuantizerConfig
from models.quantizer_fit import fit_quantizer, kmeans

CONFIG = QuantizerConfig(codebook_sizes=(16, 8, 4), embedding_dim=8, kmeans_iterations=8)
DIMENSIONS = {"text": 24, "frames": 40, "audio": 32}


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


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    return fit_quantizer(random_embeddings(400), config=CONFIG, seed=1)


def test_quantizer_codes_equal_a_greedy_search_level_by_level(quantizer: Quantizer) -> None:
    codes_BL, embedding_BD, residual_norm_B = quantizer(*tensors(random_embeddings(50, seed=2)))

    for codes_L, embedding_D, norm in zip(codes_BL, embedding_BD, residual_norm_B, strict=True):
        residual_D = embedding_D
        for level, code in enumerate(codes_L.tolist()):
            codebook_KD = quantizer.get_buffer(f"codebook_{level}")
            assert code == int((codebook_KD - residual_D).norm(dim=1).argmin())
            residual_D = residual_D - codebook_KD[code]
        assert float(norm) == pytest.approx(float(residual_D.norm()), abs=1e-6)


def test_quantizer_embedding_has_length_one_whatever_is_present(quantizer: Quantizer) -> None:
    _, embedding_BD, _ = quantizer(*tensors(random_embeddings(50, seed=2, with_media=20)))
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


def test_fit_with_the_same_seed_gives_the_same_quantizer() -> None:
    fitted = [fit_quantizer(random_embeddings(100), config=CONFIG, seed=5) for _ in range(2)]
    other = fit_quantizer(random_embeddings(100), config=CONFIG, seed=6)
    first, second = (quantizer.state_dict() for quantizer in fitted)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["codebook_0"], other.get_buffer("codebook_0"))


def test_fit_of_a_catalogue_almost_without_media_can_still_code_media() -> None:
    quantizer = fit_quantizer(random_embeddings(200, with_media=2), config=CONFIG, seed=1)
    codes_BL, embedding_BD, _ = quantizer(*tensors(random_embeddings(50, seed=2)))
    assert torch.isfinite(embedding_BD).all()
    assert len({tuple(codes_L) for codes_L in codes_BL.tolist()}) > 10


def test_fit_on_fewer_videos_than_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="15 videos cannot fill a codebook of 16"):
        fit_quantizer(random_embeddings(15), config=CONFIG)


def test_fit_reports_its_stages_in_order() -> None:
    seen: list[tuple[str, float]] = []
    fit_quantizer(
        random_embeddings(40),
        config=CONFIG,
        progress=lambda stage, share: seen.append((stage, share)),
    )
    assert list(dict.fromkeys(stage for stage, _ in seen)) == ["fusion", "codebooks"]
    assert seen[-1] == ("codebooks", 1.0)


def test_kmeans_revives_codes_that_no_row_uses() -> None:
    generator = torch.Generator().manual_seed(0)
    # 300 rows on one spot and 8 far apart: a start from random rows would leave most codes unused.
    rows_ND = torch.cat([torch.zeros(300, 4), 10 * torch.randn(8, 4, generator=generator)])
    codebook_KD = kmeans(rows_ND, 9, iterations=10, generator=generator)
    nearest_N = torch.cdist(rows_ND, codebook_KD).argmin(1)
    assert set(nearest_N.tolist()) == set(range(9))


def test_kmeans_of_equal_rows_ends_on_them() -> None:
    generator = torch.Generator().manual_seed(0)
    codebook_KD = kmeans(torch.ones(10, 3), 4, iterations=3, generator=generator)
    assert torch.equal(codebook_KD, torch.ones(4, 3))


def test_config_survives_json() -> None:
    assert QuantizerConfig.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize(
    "wrong",
    [{"codebook_sizes": ()}, {"modality_weights": (1.0, 0.0, 1.0)}, {"whitening": 1.5}],
)
def test_config_with_a_wrong_value_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantizerConfig(**wrong)  # type: ignore[arg-type]  # the values are wrong on purpose

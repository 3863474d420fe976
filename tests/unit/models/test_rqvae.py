from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.encoders import Embeddings
from models.quantizer import CO_WATCHING_WEIGHT, Fused, Quantizer, QuantizerConfig
from models.quantizer_fit import fit_quantizer
from models.rqvae import contrastive_loss, cut_off, spread_loss

CONFIG = QuantizerConfig(
    codebook_sizes=(16, 16, 8, 4),
    embedding_dim=12,
    kmeans_iterations=8,
    latent_dim=4,
    hidden_dim=48,
    steps=120,
    batch_size=96,
)
LEVEL_0 = replace(CONFIG, codebook_sizes=(16,), steps=400)
TOPICS = 6


def embeddings_of(topics_ND: np.ndarray, *, seed: int = 0, noise: float = 0.05) -> Embeddings:
    """Three views of what the videos are about, each its own rotation of it and a little noise."""
    rng = np.random.default_rng(seed)
    maps = np.random.default_rng(99)
    rows = {}
    for name, dimension in (("text_BD", 24), ("frames_BD", 40), ("audio_BD", 32)):
        values = topics_ND @ maps.standard_normal((topics_ND.shape[1], dimension))
        values += noise * rng.standard_normal(values.shape) * values.std()
        rows[name] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return Embeddings(**rows, present_BM=np.ones((len(topics_ND), 3), bool))


def random_topics(num_videos: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_videos, TOPICS))


def fuse(quantizer: Quantizer, embeddings: Embeddings) -> tuple[Fused, torch.Tensor]:
    rows = [
        torch.from_numpy(getattr(embeddings, f"{name}_BD")) for name in ("text", "frames", "audio")
    ]
    present_BM = torch.from_numpy(embeddings.present_BM)
    return quantizer.fuse((rows[0], rows[1], rows[2]), present_BM), present_BM


def codes_of(quantizer: Quantizer, embeddings: Embeddings) -> torch.Tensor:
    return quantizer.quantize(*fuse(quantizer, embeddings))[0]


def text_only(embeddings: Embeddings) -> Embeddings:
    present_BM = embeddings.present_BM.copy()
    present_BM[:, 1:] = False
    return replace(embeddings, present_BM=present_BM)


@pytest.fixture(scope="module")
def trained() -> Quantizer:
    return fit_quantizer(embeddings_of(random_topics(500)), config=CONFIG, seed=1)


def test_each_further_level_brings_the_decoded_embedding_nearer(trained: Quantizer) -> None:
    fused, present_BM = fuse(trained, embeddings_of(random_topics(500)))
    vae, codebook_KD = trained.vae, trained.get_buffer("codebook_0")
    place_BD = vae.place(fused.embedding_BD, present_BM)
    coarse_BD = codebook_KD[codes_of(trained, embeddings_of(random_topics(500)))[:, 0]]
    latent_BC = vae.encode(vae.inputs(fused.detail_BE, place_BD, coarse_BD))
    _, sums = trained.nearest_codes(latent_BC, first_level=1)
    prefixes = [torch.zeros_like(latent_BC), *sums]
    errors = [
        float((vae.decode(prefix_BC, coarse_BD) - fused.embedding_BD).square().sum(1).mean())
        for prefix_BC in prefixes
    ]
    assert errors == sorted(errors, reverse=True)
    # Level 0 alone means what its code vector means: the decoder has seen codes cut off there too.
    assert errors[0] < 1.05 * float((coarse_BD - fused.embedding_BD).square().sum(1).mean())
    assert errors[-1] < 0.93 * errors[0]


def test_cut_off_keeps_any_number_of_levels_and_the_gradient_of_the_latent() -> None:
    latent_BC = torch.full((400, 1), 0.3, requires_grad=True)
    sums = [torch.full((400, 1), value) for value in (1.0, 2.0, 3.0)]
    passed_BC = cut_off(latent_BC, sums, torch.Generator().manual_seed(0))
    values_B = passed_BC.detach()[:, 0].round(decimals=4)
    assert all(60 < int((values_B == value).sum()) < 140 for value in (0.0, 1.0, 2.0, 3.0))
    torch.autograd.backward(passed_BC.sum())
    assert latent_BC.grad is not None
    assert torch.equal(latent_BC.grad[:, 0], (values_B > 0).float())


def test_codes_of_new_videos_are_most_often_unique_where_latents_are_spread() -> None:
    # Tight groups, as of one product in many colours: residuals of level 0 alone say little.
    rng = np.random.default_rng(0)
    groups_ND = np.repeat(random_topics(30), 25, axis=0)
    topics_ND = rng.permutation(groups_ND + 0.1 * rng.standard_normal(groups_ND.shape))
    everything = embeddings_of(topics_ND, noise=0.01)
    earlier = Embeddings(
        everything.text_BD[:600],
        everything.frames_BD[:600],
        everything.audio_BD[:600],
        everything.present_BM[:600],
    )

    def uniqueness(config: QuantizerConfig) -> float:
        quantizer = fit_quantizer(earlier, config=replace(config, codebook_sizes=(16, 16, 16)))
        codes_NL = codes_of(quantizer, everything).numpy()
        _, cell_N, count_C = np.unique(codes_NL, axis=0, return_inverse=True, return_counts=True)
        return float((count_C[cell_N] == 1)[600:].mean())

    unspread = uniqueness(replace(CONFIG, spread_weight=0.0))
    assert uniqueness(CONFIG) > unspread + 0.1
    assert unspread > uniqueness(replace(CONFIG, method="rkmeans")) + 0.1


def test_codebooks_end_on_the_means_of_the_latents_they_code(trained: Quantizer) -> None:
    fused, present_BM = fuse(trained, embeddings_of(random_topics(500)))
    place_BD = trained.vae.place(fused.embedding_BD, present_BM)
    codes_BL = codes_of(trained, embeddings_of(random_topics(500)))
    coarse_BD = trained.get_buffer("codebook_0")[codes_BL[:, 0]]
    latent_BC = trained.vae.encode(trained.vae.inputs(fused.detail_BE, place_BD, coarse_BD))
    for rows_BD, level in ((place_BD, 0), (latent_BC, 1)):
        codebook_KD = trained.get_buffer(f"codebook_{level}")
        for code in set(codes_BL[:, level].tolist()):
            mean_D = rows_BD[codes_BL[:, level] == code].mean(0)
            assert float((codebook_KD[code] - mean_D).norm()) < 0.15
    assert len(set(codes_BL[:, 1].tolist())) == 16  # none is dead


def test_videos_watched_together_share_codes_more_often_with_the_contrastive_loss() -> None:
    # What is watched together agrees in the last two topics, of which the embedding says little.
    topics_ND = random_topics(600)
    taste_ND = np.random.default_rng(1).standard_normal((12, 2))
    taste_N = np.arange(600) % 12
    topics_ND[:, 4:] = 0.5 * taste_ND[taste_N]
    pairs_P2 = np.stack([np.arange(600), (np.arange(600) + 12) % 600], axis=1)

    def share(pairs: np.ndarray | None) -> float:
        videos = embeddings_of(topics_ND)
        config = replace(LEVEL_0, contrastive_weight=CO_WATCHING_WEIGHT)
        quantizer = fit_quantizer(videos, config=config, pairs=pairs)
        code_N = codes_of(quantizer, videos)[:, 0]
        return float((code_N[pairs_P2[:, 0]] == code_N[pairs_P2[:, 1]]).float().mean())

    assert share(pairs_P2) > share(None) + 0.1


def test_contrastive_loss_takes_no_pair_of_the_same_video_for_a_wrong_answer() -> None:
    one_BD = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator()), dim=1)
    apart = torch.tensor([[0, 1], [2, 3], [4, 5]])
    same = torch.tensor([[0, 1], [2, 1], [4, 1]])
    assert contrastive_loss(one_BD, one_BD, apart, temperature=0.1) > 0
    assert contrastive_loss(one_BD, one_BD, same, temperature=0.1) == 0


def test_title_alone_lands_near_the_whole_video(trained: Quantizer) -> None:
    whole = embeddings_of(random_topics(200, seed=5), seed=5)
    full_BL, title_BL = codes_of(trained, whole), codes_of(trained, text_only(whole))
    by_chance = float((full_BL[:, 0] == title_BL[:, 0].roll(1)).float().mean())
    assert float((full_BL[:, 0] == title_BL[:, 0]).float().mean()) > by_chance + 0.4


def test_modality_dropout_brings_a_part_of_a_video_nearer_to_its_whole() -> None:
    # The sound says what the text does not, but follows from it in part.
    videos = embeddings_of(random_topics(400), noise=0.3)

    def distance(share: float) -> float:
        quantizer = fit_quantizer(videos, config=replace(LEVEL_0, modality_dropout=share))
        whole_BD, title_BD = (
            quantizer.vae.place(fused.embedding_BD, present_BM)
            for fused, present_BM in (fuse(quantizer, videos), fuse(quantizer, text_only(videos)))
        )
        return float((whole_BD - title_BD).norm(dim=1).mean())

    assert distance(0.5) < 0.9 * distance(0.0)


def test_spread_loss_falls_as_the_nearest_move_apart() -> None:
    everybody_BB = ~torch.eye(3, dtype=torch.bool)

    def at(*degrees: float) -> torch.Tensor:
        angle_B = torch.tensor(degrees).deg2rad()
        latent_BC = torch.stack([angle_B.cos(), angle_B.sin()], dim=1)
        return spread_loss(latent_BC, everybody_BB)

    assert at(0, 1, 180) > at(0, 10, 180) > at(0, 120, 240)


def test_spread_loss_ignores_those_that_may_be_near() -> None:
    latent_BC = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    torch.autograd.backward(spread_loss(latent_BC, torch.zeros(3, 3, dtype=torch.bool)))
    assert latent_BC.grad is not None
    assert not latent_BC.grad.any()

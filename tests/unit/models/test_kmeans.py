from __future__ import annotations

import torch

from models.kmeans import MovingAverages, kmeans, nearest


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


def test_kmeans_from_given_code_vectors_goes_on_from_them() -> None:
    rows_ND = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    codebook_KD = kmeans(
        rows_ND,
        2,
        iterations=3,
        generator=torch.Generator(),
        start_KD=torch.tensor([[12.0], [-3.0]]),
    )
    assert codebook_KD.tolist() == [[10.5], [0.5]]


def test_moving_averages_end_on_the_means_of_what_they_code() -> None:
    generator = torch.Generator().manual_seed(0)
    centres_KD = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    codebook_KD = centres_KD + 0.5
    averages = MovingAverages([codebook_KD], decay=0.9)
    for _ in range(100):
        which = torch.randint(3, (64,), generator=generator)
        averages.follow(centres_KD[which])
    assert float((codebook_KD - centres_KD).abs().max()) < 1e-3


def test_moving_averages_revive_a_code_that_nothing_uses() -> None:
    generator = torch.Generator().manual_seed(0)
    # The last two are far from all rows, as after a bad start; rows are near the first and the second.
    codebook_KD = torch.tensor([[0.0, 0.0], [5.0, 0.0], [50.0, 50.0], [60.0, 50.0]])
    averages = MovingAverages([codebook_KD], decay=0.9)
    used = set()
    for step in range(100):
        rows_BD = torch.randn(64, 2, generator=generator) + torch.tensor([5.0, 0.0]) * (step % 2)
        averages.follow(rows_BD)
        if step >= 60:
            used |= set(nearest(rows_BD, codebook_KD).tolist())
    assert used == {0, 1, 2, 3}


def test_moving_averages_return_the_sum_of_code_vectors_after_each_level() -> None:
    codebooks = [torch.tensor([[0.0], [10.0]]), torch.tensor([[-1.0], [1.0]])]
    sums = MovingAverages(codebooks, decay=1.0).follow(torch.tensor([[9.2], [0.9]]))
    assert [sum_BD.tolist() for sum_BD in sums] == [[[10.0], [0.0]], [[9.0], [1.0]]]

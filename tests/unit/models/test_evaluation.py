from __future__ import annotations

from models.evaluation import Popularity, ndcg_at_k, recall_at_k


def test_recall_counts_targets_among_the_first_k() -> None:
    ranked = [["a", "b"], ["c", "a"], []]
    assert recall_at_k(ranked, ["b", "a", "z"], k=1) == 0
    assert recall_at_k(ranked, ["b", "a", "z"], k=2) == 2 / 3
    assert recall_at_k([], []) == 0


def test_ndcg_is_one_for_first_places_and_less_behind() -> None:
    assert ndcg_at_k([["a", "b"]], ["a"]) == 1
    assert 0 < ndcg_at_k([["b", "a"]], ["a"]) < 1
    assert ndcg_at_k([["b"]], ["a"]) == 0


def test_popularity_leaves_out_the_watched_and_breaks_ties_by_id() -> None:
    popularity = Popularity()
    popularity.add(["b", "a", "c", "c"])
    assert popularity.top(3) == ["c", "a", "b"]
    assert popularity.top(2, excluded={"c"}, live={"b", "c"}) == ["b"]

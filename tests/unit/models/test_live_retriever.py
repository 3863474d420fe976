from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.live_retriever import FIRST, live_retriever
from models.retriever import Retriever, build_retriever
from models.two_tower import ITEM_TOWERS, ItemContents, ItemTower, TwoTowerConfig

CONTENT_DIM = 4


def contents(item_ids: Sequence[str], *, edition: int = 0) -> ItemContents:
    """What follows from an id and how often it was edited."""
    rows, clusters = [], []
    for item_id in item_ids:
        rng = random.Random(f"{item_id}/{edition}")
        rows.append([rng.gauss(0, 1) for _ in range(CONTENT_DIM)])
        clusters.append(rng.randrange(4))
    content_NC = torch.tensor(rows).reshape(-1, CONTENT_DIM)
    return ItemContents(list(item_ids), content_NC, torch.tensor(clusters, dtype=torch.int64))


def trained(tower: ItemTower) -> Retriever:
    config = TwoTowerConfig(
        item_tower=tower, size=8, hidden_size=8, history_max=4, hash_rows=4096, num_clusters=4
    )
    return build_retriever(contents(["old"]), config=config, codebook_version=1)


def rebuilt(tower: ItemTower, items: dict[str, int]) -> Retriever:
    """A retriever with the same weights, told of all items at once."""
    retriever = trained(tower)
    parts = [contents([one], edition=items[one]) for one in sorted(items)]
    if parts:
        retriever.set_items(
            ItemContents(
                sorted(items),
                torch.cat([part.content_NC for part in parts]),
                torch.cat([part.cluster_N for part in parts]),
            )
        )
    return retriever


STEPS = st.lists(
    st.dictionaries(st.sampled_from([f"v{n}" for n in range(12)]), st.sampled_from("+-")),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("tower", ITEM_TOWERS)
@settings(max_examples=40, deadline=None)
@given(steps=STEPS, history=st.lists(st.sampled_from([f"v{n}" for n in range(12)]), max_size=6))
def test_retriever_brought_up_to_date_in_steps_ranks_as_one_built_at_once(
    tower: ItemTower, steps: list[dict[str, str]], history: list[str]
) -> None:
    live, items = live_retriever(trained(tower)), dict[str, int]()
    for edition, step in enumerate(steps):
        items = {one: at for one, at in items.items() if step.get(one) != "-"}
        changed = [one for one, kind in step.items() if kind == "+"]
        items |= dict.fromkeys(changed, edition)
        gone = [one for one, kind in step.items() if kind == "-"]
        live = live.with_items(contents(changed, edition=edition), gone=["old", *gone])
        assert sorted(live.item_ids) == sorted(items)
        if not items:
            assert live.rank([history], top_k=3) == [[]]
            continue
        whole = rebuilt(tower, items)
        with torch.inference_mode():
            in_order = [live.item_ids.index(one) for one in whole.item_ids]
            expected_ND = whole.model.item_vectors()
            assert torch.allclose(live.vectors_ND[in_order], expected_ND, atol=1e-6)
        excluded = [history[:2]]
        expected = whole.rank([history], top_k=20, excluded=excluded)
        assert live.rank([history], top_k=20, excluded=excluded) == expected
        assert list(live.ranking(history)) == whole.rank([history], top_k=20)[0]
        assert live.rank([history], top_k=3) == [whole.rank([history], top_k=3)[0]]


def test_retriever_in_use_stays_as_it_was_when_another_takes_its_place() -> None:
    first = live_retriever(trained("cluster")).with_items(contents(["a", "b"]), gone=["old"])
    before = first.rank([["a"]], top_k=5)
    second = first.with_items(contents(["c"]), gone=["a", "never there"])
    assert first.rank([["a"]], top_k=5) == before
    assert set(before[0]) == {"a", "b"}
    assert set(second.rank([["a"]], top_k=5)[0]) == {"b", "c"}
    assert second.model is first.model


def test_retriever_starts_with_the_items_that_it_was_trained_on() -> None:
    [found] = live_retriever(trained("cluster")).rank([[]], top_k=5)
    assert found == ["old"]


def test_ranking_is_the_same_however_far_it_is_looked_at() -> None:
    ids = [f"v{number}" for number in range(2 * FIRST + 1)]
    live = live_retriever(trained("cluster")).with_items(contents(ids), gone=["old"])
    ranking = live.ranking(["v3", "v7"])
    [expected] = live.rank([["v3", "v7"]], top_k=len(ids))
    assert list(ranking) == expected
    assert list(islice(ranking, 5)) == expected[:5]
    assert list(islice(ranking, FIRST + 1)) == expected[: FIRST + 1]

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError
from infra.settings import Settings, with_values
from streams.beauty import load_timeline
from streams.timeline import Timeline

DAY_S = 86_400
T = 1_300_000 * 100
ITEM = {
    "item": 1,
    "asin": "B000000001",
    "title": "L&#39;Exemple Polish, 1 Ounce",
    "attributes": ["Exemple &amp; Co", "Makeup", "Nails", "Nail Polish"],
    "first_seen": T,
}
HEADER = "user,item,timestamp,pos,split"


def small(folder: Path, *, items: list[Any], interactions: list[str]) -> Timeline:
    """Load a data set of a few lines."""
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    (folder / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "interactions.csv").write_text("\n".join([HEADER, *interactions]), encoding="utf-8")
    return load_timeline(with_values(Settings(), data__beauty=folder))


def test_product_becomes_an_upload_a_day_before_its_first_review(tmp_path: Path) -> None:
    (upload,) = small(tmp_path, items=[ITEM], interactions=[]).uploads()
    assert upload.video_id == "ab-1"
    assert upload.event_time_ms == (T - DAY_S) * 1000
    assert upload.title == "L'Exemple Polish, 1 Ounce"
    assert upload.channel == "Exemple & Co"
    assert (upload.topics, upload.category) == (("Makeup", "Nails"), "Nail Polish")


@pytest.mark.parametrize(
    ("attributes", "brand", "topics", "category"),
    [
        (["Fragrance"], "", (), "Fragrance"),
        (["Hair Care", "Shampoos"], "", ("Hair Care",), "Shampoos"),
        (["Unknown", "Skin Care", "Face"], "", ("Skin Care",), "Face"),
        ([], "", (), ""),
    ],
)
def test_attributes_without_a_brand_are_all_category(
    tmp_path: Path, attributes: list[str], brand: str, topics: tuple[str, ...], category: str
) -> None:
    item = ITEM | {"attributes": attributes}
    (upload,) = small(tmp_path, items=[item], interactions=[]).uploads()
    assert (upload.channel, upload.topics, upload.category) == (brand, topics, category)


def test_reviews_of_one_day_keep_the_order_of_the_file(tmp_path: Path) -> None:
    items = [ITEM | {"item": number} for number in (1, 2, 3)]
    rows = [f"7,3,{T},0,train", f"7,1,{T},1,valid", f"7,2,{T},2,test", f"8,1,{T - 5},0,train"]
    timeline = small(tmp_path, items=items, interactions=rows)
    assert [(watch.user_id, watch.video_id) for watch in timeline.watches()] == [
        ("ab-8", "ab-1"), ("ab-7", "ab-3"), ("ab-7", "ab-1"), ("ab-7", "ab-2"),
    ]  # fmt: skip
    assert [each.kind for each in timeline.events[:3]] == ["uploaded"] * 3
    ids = [each.event.event_id for each in timeline.events]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "row 2: Expecting property name"),
        ({"item": 2}, "row 2: no field 'first_seen'"),
        (ITEM | {"first_seen": "soon"}, "row 2: .*first_seen 'soon', expected whole numbers"),
        (ITEM | {"attributes": "Makeup"}, "row 2: attributes are 'Makeup', expected a list"),
        (ITEM | {"first_seen": -T}, "row 2: Input should be greater than"),
    ],
)
def test_bad_item_is_refused_with_file_row_and_setting(
    tmp_path: Path, bad: object, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        small(tmp_path, items=[ITEM, bad], interactions=[])
    assert "items.jsonl" in str(refused.value)
    assert "FRESHET_DATA__BEAUTY" in str(refused.value)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (f"7,2,{T},0,train", "row 2: item 2 is not in items.jsonl"),
        ("7,1,yesterday,0,train", "row 2: invalid literal"),
        ("7,1", "row 2: int"),
    ],
)
def test_bad_interaction_is_refused_with_its_row(tmp_path: Path, bad: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        small(tmp_path, items=[ITEM], interactions=[bad])


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    settings = with_values(Settings(), data__beauty=tmp_path)
    with pytest.raises(ConfigError, match=r"items\.jsonl is missing in .*FRESHET_DATA__BEAUTY"):
        load_timeline(settings)


def test_unset_folder_is_refused_with_the_setting_that_names_it() -> None:
    with pytest.raises(ConfigError, match="FRESHET_DATA__BEAUTY is not set"):
        load_timeline(Settings())

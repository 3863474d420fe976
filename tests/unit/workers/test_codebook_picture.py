from __future__ import annotations

import io
from typing import Any

import matplotlib.image
import pytest
from rich.console import Console

from tests.codebook_factories import card
from workers.codebook_picture import DOTS_PER_INCH, SIZE_INCHES, picture, summary

CARDS = {
    "whole": {},
    "nothing held out": {"num_fitted": 40},
    "no categories, no watches": {"judged": False},
    "eight levels": {"codebook_sizes": (4,) * 8},
}


@pytest.mark.parametrize("changed", CARDS.values(), ids=CARDS)
def test_picture_is_a_png_of_the_size_it_says(changed: dict[str, Any]) -> None:
    data = picture(card(**changed))
    pixels = matplotlib.image.imread(io.BytesIO(data), format="png")
    width, height = (DOTS_PER_INCH * inches for inches in SIZE_INCHES)
    assert pixels.shape[:2] == (height, width)
    assert (pixels[..., :3] < 1).any()


def test_equal_cards_have_equal_pictures() -> None:
    assert picture(card()) == picture(card())


@pytest.mark.parametrize("changed", CARDS.values(), ids=CARDS)
def test_summary_says_what_the_card_says(changed: dict[str, Any]) -> None:
    found = card(**changed)
    console = Console(file=io.StringIO(), width=200)
    console.print(summary(found))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert f"{found['fitted']['uniqueness']:.2%}" in said
    assert " x ".join(map(str, found["codebook_sizes"])) in said
    assert found["notes"]["category"] in said

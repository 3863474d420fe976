from __future__ import annotations

from pathlib import Path

import pytest

from infra.storage import ObjectStore
from streams.figures import FIGURES_KEY, read_figures, write_figures


def test_figures_are_read_as_they_were_last_written(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    assert read_figures(store) == {}
    write_figures(store, {"coverage": 0.1})
    write_figures(store, {"coverage": 0.2, "arms": {"lrm": 1}})
    assert read_figures(store) == {"coverage": 0.2, "arms": {"lrm": 1}}


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{"])
def test_figures_that_cannot_be_read_are_none(tmp_path: Path, content: bytes) -> None:
    store = ObjectStore(str(tmp_path))
    store.put_bytes(FIGURES_KEY, content)
    assert read_figures(store) == {}

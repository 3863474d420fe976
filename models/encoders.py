"""Turns a video's text, frames and sound into one embedding per modality, with ONNX Runtime.

Knows nothing of torch (a worker starts in a second without it), of containers, Kafka and semantic IDs.

Legend: B videos, M modalities, D an encoder's dimension, F frames of a video, P patches, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from infra.errors import ConfigError, VersionMismatchError
from infra.storage import sha256_of
from models.log_mel import log_mel_patches
from models.onnx_session import open_session

Modality = Literal["text", "frames", "audio"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
MANIFEST_FILE = "encoders.json"
MANIFEST_FORMAT = 1
FRAME_SIZE = 224

# Rows per run: enough to fill two cores, little enough that activations stay under ~200 MB.
_TEXT_ROWS, _FRAME_ROWS, _PATCH_ROWS = 64, 16, 32

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One encoder's graph and all that its embeddings depend on.

    The graph's first output, `vectors`, has one row per text, frame or patch.
    """

    name: str
    modality: Modality
    file: str
    sha256: str
    dimension: int
    inputs: Mapping[str, str]
    preprocessing: Mapping[str, Any]
    assets: Mapping[str, str]  # further files and their sha256, such as the tokenizer
    source: Mapping[str, str]  # package -> version


@dataclass(frozen=True)
class EncoderManifest:
    """One encoder for each modality, as listed in `encoders.json`."""

    encoders: tuple[EncoderSpec, ...]

    @property
    def digest(self) -> str:
        """The hex sha256 of the manifest: equal digests mean equal embeddings."""
        return sha256(self.to_json().encode()).hexdigest()

    def spec(self, modality: Modality) -> EncoderSpec:
        """Return the encoder of one modality."""
        return next(spec for spec in self.encoders if spec.modality == modality)

    def to_json(self) -> str:
        """Return the manifest as `load_manifest` reads it."""
        encoders = [asdict(spec) for spec in self.encoders]
        return json.dumps({"format": MANIFEST_FORMAT, "encoders": encoders}, indent=2) + "\n"


def load_manifest(directory: Path) -> EncoderManifest:
    """Read `encoders.json`; on return every file it names is there and has its hash.

    Raises:
        ConfigError: there is no manifest, or it is not one.
        VersionMismatchError: a file is missing or is not the announced one.
    """
    path = directory / MANIFEST_FILE
    try:
        content = json.loads(path.read_text())
        manifest = EncoderManifest(tuple(EncoderSpec(**entry) for entry in content["encoders"]))
        found = content["format"], sorted(spec.modality for spec in manifest.encoders)
    except FileNotFoundError as error:
        raise ConfigError(f"no encoders in {directory}: run `freshet bootstrap` first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no encoder manifest ({error}): remove it, rebuild") from error
    if found != (MANIFEST_FORMAT, sorted(MODALITIES)):
        raise ConfigError(
            f"{path} holds format and modalities {found}, expected {MANIFEST_FORMAT} and one encoder "
            f"for each of {MODALITIES}: remove it and rebuild"
        )
    for spec in manifest.encoders:
        for name, announced in {spec.file: spec.sha256, **spec.assets}.items():
            _check_file(directory / name, announced)
    return manifest


def _check_file(path: Path, announced: str) -> None:
    if not path.is_file():
        raise VersionMismatchError(f"{path} is missing: remove {MANIFEST_FILE} beside it, rebuild")
    found = sha256_of(path)
    if found != announced:
        raise VersionMismatchError(
            f"{path} has sha256 {found}, its manifest says {announced}: not loaded; "
            f"remove {MANIFEST_FILE} beside it and rebuild"
        )


@dataclass(frozen=True)
class Content:
    """What is known of one video; an empty text, or None, says that the modality is missing.

    Shapes: frames uint8 [F, 224, 224, 3] RGB, waveform float32 [S] at 16 kHz mono.
    """

    text: str
    frames: UInt8 | None = None
    waveform: Float32 | None = None


@dataclass(frozen=True)
class Embeddings:
    """One unit vector per video and modality; where `present_BM` is False the row is zero.

    Shapes: text_BD [B, 384], frames_BD [B, 1280], audio_BD [B, 1024] float32; present_BM [B, 3] bool,
    columns in the order of MODALITIES.
    """

    text_BD: Float32
    frames_BD: Float32
    audio_BD: Float32
    present_BM: Bool


class Encoders:
    """Three encoders, ready to run; thread-safe.

    Raises:
        ConfigError: the directory has no manifest.
        VersionMismatchError: a file is not the one that the manifest announces.
    """

    def __init__(self, directory: Path, *, num_threads: int | None = None) -> None:
        self.manifest = load_manifest(directory)
        self.dimensions: dict[Modality, int] = {
            modality: self.manifest.spec(modality).dimension for modality in MODALITIES
        }
        self._sessions = {
            spec.modality: open_session(directory / spec.file, num_threads=num_threads)
            for spec in self.manifest.encoders
        }
        text = self.manifest.spec("text").preprocessing
        self._tokenizer = Tokenizer.from_file(str(directory / text["tokenizer"]))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(text["tokens_max"])

    def encode(self, contents: Sequence[Content]) -> Embeddings:
        """Embed each video's modalities; several frames or patches become their mean's direction.

        Shapes: B contents -> Embeddings of B rows; B may be 0.
        Raises: ValueError: frames or a waveform have another shape or type than Content says.
        """
        for content in contents:
            _check_shapes(content)
        vectors = (
            self._encode_texts([content.text for content in contents]),
            self._encode_frames([content.frames for content in contents]),
            self._encode_audio([content.waveform for content in contents]),
        )
        present = [_is_present(content) for content in contents]
        return Embeddings(*vectors, np.array(present, dtype=bool).reshape(-1, len(MODALITIES)))

    def _encode_texts(self, texts: Sequence[str]) -> Float32:
        """Embed non-empty texts in batches of similar length, so that little is spent on padding."""
        vectors_BD = np.zeros((len(texts), self.dimensions["text"]), np.float32)
        tokens = self._tokenizer.encode_batch(list(texts))
        rows = [row for row, text in enumerate(texts) if text.strip()]
        rows.sort(key=lambda row: len(tokens[row].ids))
        for start in range(0, len(rows), _TEXT_ROWS):
            batch = rows[start : start + _TEXT_ROWS]
            input_ids_BT = _pad([tokens[row].ids for row in batch])
            attention_mask_BT = _pad([tokens[row].attention_mask for row in batch])
            feed = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT}
            (vectors_BD[batch],) = self._sessions["text"].run(["vectors"], feed)
        return vectors_BD

    def _encode_frames(self, clips: Sequence[UInt8 | None]) -> Float32:
        return self._pool("frames", clips, _FRAME_ROWS)

    def _encode_audio(self, waveforms: Sequence[Float32 | None]) -> Float32:
        patches = [
            None if waveform is None else log_mel_patches(waveform) for waveform in waveforms
        ]
        return self._pool("audio", patches, _PATCH_ROWS)

    def _pool(
        self, modality: Modality, parts: Sequence[npt.NDArray[Any] | None], max_rows: int
    ) -> Float32:
        """Embed the frames or patches of all videos together, then average and normalise per video."""
        vectors_BD = np.zeros((len(parts), self.dimensions[modality]), np.float32)
        present = [(row, part) for row, part in enumerate(parts) if part is not None]
        if not present:
            return vectors_BD
        stacked = np.concatenate([part for _, part in present])
        (name,) = self.manifest.spec(modality).inputs
        runs = [
            self._sessions[modality].run(["vectors"], {name: stacked[start : start + max_rows]})[0]
            for start in range(0, len(stacked), max_rows)
        ]
        lengths = [len(part) for _, part in present]
        starts = np.cumsum([0, *lengths[:-1]])
        sums_PD = np.add.reduceat(np.concatenate(runs), starts, axis=0)
        norms = np.linalg.norm(sums_PD, axis=1, keepdims=True)
        vectors_BD[[row for row, _ in present]] = sums_PD / np.maximum(norms, 1e-12)
        return vectors_BD


def _is_present(content: Content) -> tuple[bool, bool, bool]:
    return bool(content.text.strip()), content.frames is not None, content.waveform is not None


def _check_shapes(content: Content) -> None:
    frames, waveform = content.frames, content.waveform
    if frames is not None and (
        frames.dtype != np.uint8
        or frames.shape[1:] != (FRAME_SIZE, FRAME_SIZE, 3)
        or not len(frames)
    ):
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}, expected uint8 [F > 0, 224, 224, 3]"
        )
    if waveform is not None and (
        waveform.dtype != np.float32 or waveform.ndim != 1 or not len(waveform)
    ):
        raise ValueError(
            f"waveform is {waveform.dtype} {waveform.shape}, expected float32 [S > 0] at 16 kHz"
        )


def _pad(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)  # 0 is [PAD], and masked
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded

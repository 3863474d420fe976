"""What `encoders.json` says: each encoder's graph, its hashes, and all that its embeddings depend on.

Knows nothing of ONNX Runtime and torch: a manifest is read, and its files are hashed, before any graph is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from infra.errors import ConfigError, VersionMismatchError
from infra.storage import sha256_of
from models.log_mel import LogMel

Modality = Literal["text", "frames", "audio"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
MANIFEST_FILE = "encoders.json"
MANIFEST_FORMAT = 2
FRAME_SIZE_MAX = 1024  # pixels: five frames of a video are then 16 MB
TOKENS_MAX = 8192


class _Strict:
    # A misspelt key, or text where a number belongs, is an error.
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True)
class TextInputs(_Strict):
    """The names of the graph's inputs, integers [B, T]; `token_type_ids` are zeros where the graph wants them."""

    input_ids: str
    attention_mask: str
    token_type_ids: str | None = None


@dataclass(frozen=True, kw_only=True)
class TextPreprocessing(_Strict):
    """How a text becomes tokens, and what the graph says of each token one vector.

    Attributes:
        tokenizer: a file of the tokenizers library (`tokenizer.json`), listed in the assets.
        tokens_max: special tokens included; later ones are cut off.
        pooling: none where the output is one vector per text; mean over the real tokens; cls, the first token's.
        pad_id: put, masked, behind shorter texts of a batch.
    """

    tokenizer: str
    tokens_max: Annotated[int, Field(ge=2, le=TOKENS_MAX)]
    pooling: Literal["none", "mean", "cls"]
    pad_id: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class FrameInputs(_Strict):
    """The name of the graph's input."""

    frames: str


@dataclass(frozen=True, kw_only=True)
class FramePreprocessing(_Strict):
    """How frames become numbers: (pixel * scale - mean) / std per channel; uint8 goes in as decoded.

    Attributes:
        size: pixels of a frame's side; the whole frame is resized to this square.
        colour: order of the channels, and of mean and std.
    """

    size: Annotated[int, Field(ge=8, le=FRAME_SIZE_MAX)]
    layout: Literal["NHWC", "NCHW"]
    dtype: Literal["uint8", "float32"]
    colour: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Literal["whole frame, area"] = "whole frame, area"

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        if self.dtype == "uint8" and (self.scale, self.mean, self.std) != (
            1.0,
            (0.0,) * 3,
            (1.0,) * 3,
        ):
            raise ValueError("scale, mean and std are for dtype float32, not for uint8")
        if 0.0 in self.std:
            raise ValueError(f"std {self.std} divides by zero")


@dataclass(frozen=True, kw_only=True)
class AudioInputs(_Strict):
    """The name of the graph's input."""

    patches: str


@dataclass(frozen=True, kw_only=True)
class _Encoder(_Strict):
    """What every encoder declares; file names are relative to the manifest.

    Attributes:
        output: name of the graph's output.
        assets: further files and their sha256: the tokenizer, weights outside the graph.
        source: where it comes from, such as package -> version.
    """

    name: str
    file: str
    dimension: Annotated[int, Field(ge=1, le=65_536)]
    output: str
    sha256: str = ""
    assets: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """Return every file that it needs, and the sha256 announced for it."""
        return {**self.assets, self.file: self.sha256}


@dataclass(frozen=True, kw_only=True)
class TextSpec(_Encoder):
    """A text encoder."""

    modality: Literal["text"] = "text"
    inputs: TextInputs
    preprocessing: TextPreprocessing

    @property
    def files(self) -> dict[str, str]:
        """Return every file that it needs, the tokenizer too where the assets leave it out."""
        return {self.preprocessing.tokenizer: "", **super().files}


@dataclass(frozen=True, kw_only=True)
class FrameSpec(_Encoder):
    """An encoder of frames."""

    modality: Literal["frames"] = "frames"
    inputs: FrameInputs
    preprocessing: FramePreprocessing


@dataclass(frozen=True, kw_only=True)
class AudioSpec(_Encoder):
    """An encoder of sound."""

    modality: Literal["audio"] = "audio"
    inputs: AudioInputs
    preprocessing: LogMel


EncoderSpec = TextSpec | FrameSpec | AudioSpec


@dataclass(frozen=True, kw_only=True)
class _Document(_Strict):
    format: Literal[2]
    encoders: tuple[Annotated[EncoderSpec, Field(discriminator="modality")], ...]


_UNKNOWN = "unexpected_keyword_argument"
_DOCUMENT = TypeAdapter(_Document)
_SPECS: Mapping[str, type[EncoderSpec]] = {
    "text": TextSpec,
    "frames": FrameSpec,
    "audio": AudioSpec,
}


@dataclass(frozen=True, kw_only=True)
class EncoderManifest:
    """One encoder for each modality."""

    text: TextSpec
    frames: FrameSpec
    audio: AudioSpec

    @property
    def encoders(self) -> tuple[EncoderSpec, ...]:
        """All encoders, in the order of MODALITIES."""
        return self.text, self.frames, self.audio

    @property
    def digest(self) -> str:
        """The hex sha256 of the manifest: equal digests mean equal embeddings."""
        return sha256(self.to_json().encode()).hexdigest()

    def spec(self, modality: Modality) -> EncoderSpec:
        """Return the encoder of one modality."""
        return self.encoders[MODALITIES.index(modality)]

    def to_json(self) -> str:
        """Return the manifest as `load_manifest` reads it."""
        encoders = [asdict(spec) for spec in self.encoders]
        return json.dumps({"format": MANIFEST_FORMAT, "encoders": encoders}, indent=2) + "\n"


def complete(specs: Sequence[EncoderSpec]) -> EncoderManifest:
    """Return the manifest of one encoder for each modality.

    Raises: ConfigError: a modality has none.
    """
    found = {spec.modality: spec for spec in specs}
    missing = [modality for modality in MODALITIES if modality not in found]
    if missing:
        raise ConfigError(f"{MANIFEST_FILE} has no encoder for {', '.join(missing)}")
    text, frames, audio = found["text"], found["frames"], found["audio"]
    assert isinstance(text, TextSpec)
    assert isinstance(frames, FrameSpec)
    assert isinstance(audio, AudioSpec)
    return EncoderManifest(text=text, frames=frames, audio=audio)


def load_manifest(directory: Path) -> EncoderManifest:
    """Read the published `encoders.json`; on return every file it names is there and has its hash.

    Raises:
        ConfigError: there is no manifest, or it is not one.
        VersionMismatchError: a file is missing or is not the announced one.
    """
    specs = read_specs(directory)
    for spec in specs:
        check_files(
            directory, spec, way_out="run `freshet bootstrap` to publish the encoders again"
        )
    return complete(specs)


def read_specs(directory: Path) -> tuple[EncoderSpec, ...]:
    """Read what `encoders.json` declares, at most one encoder for each modality, without looking at its files.

    Raises: ConfigError: there is no manifest, or it is not one.
    """
    path = directory / MANIFEST_FILE
    try:
        text = path.read_text()
        specs = _DOCUMENT.validate_json(text).encoders
    except FileNotFoundError as error:
        raise ConfigError(
            f"no {MANIFEST_FILE} in {directory}: run `freshet bootstrap` first"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no encoder manifest: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} is no encoder manifest: {_first(error, text)}") from error
    twice = {
        spec.modality
        for spec in specs
        if [each.modality for each in specs].count(spec.modality) > 1
    }
    if twice:
        raise ConfigError(f"{path} has several encoders for {', '.join(twice)}: keep one of each")
    return specs


def _first(error: ValidationError, text: str) -> str:
    """Return one sentence on the first mistake: which encoder, which key, what is valid.

    A misspelt key comes before the one that is then missing.
    """
    mistakes: Any = sorted(
        error.errors(include_url=False), key=lambda each: each["type"] != _UNKNOWN
    )
    mistake = mistakes[0]
    location, message = mistake["loc"], str(mistake["msg"])
    if location[:1] != ("encoders",) or len(location) < 2:
        return ": ".join([*map(str, location), message])
    entry = json.loads(text)["encoders"][location[1]]
    name = entry.get("name", location[1]) if isinstance(entry, dict) else location[1]
    keys = location[3:]  # the third is the modality
    owner: Any = _SPECS[location[2]] if keys else None
    for key in keys[:-1]:
        owner = get_type_hints(owner).get(str(key), owner)
    if mistake["type"] == _UNKNOWN:
        message = f"unknown, expected one of {', '.join(each.name for each in fields(owner))}"
    elif keys and not isinstance(mistake["input"], dict):
        message += f", got {mistake['input']!r}"
    return f"encoder {name}: {'.'.join(map(str, keys)) or 'modality'}: {message}"


def inside(directory: Path, name: str) -> Path:
    """Return the path of a manifest's file, which lies in the manifest's folder, links followed.

    Raises: ConfigError: the name leads elsewhere.
    """
    relative = PurePosixPath(name)
    odd = not relative.parts or relative.is_absolute() or ".." in relative.parts
    if odd or "\\" in name or "\0" in name:
        raise ConfigError(
            f"{directory / MANIFEST_FILE} names the file {name!r}: expected one below its folder, without '..'"
        )
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ConfigError(
            f"{path} is a link that leads out of its folder: put the file itself there"
        )
    return path


def check_files(directory: Path, spec: EncoderSpec, *, way_out: str) -> None:
    """Return when every file of an encoder is in the folder and has the announced hash; raises like load_manifest."""
    for name, announced in spec.files.items():
        path = inside(directory, name)
        if not announced:
            raise ConfigError(f"encoder {spec.name} announces no sha256 for {name}: {way_out}")
        if not path.is_file():
            raise VersionMismatchError(f"{path} is missing: {way_out}")
        found = sha256_of(path)
        if found != announced:
            raise VersionMismatchError(
                f"{path} has sha256 {found}, its manifest says {announced}: not loaded; {way_out}"
            )

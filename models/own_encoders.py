"""Takes in encoders that users bring: checks a folder, fills in its hashes, copies its files.

Knows nothing of the built-in encoders and of what embeddings are used for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import (  # type: ignore[import-untyped]  # its stubs are a package of their own
    DecodeError as ProtobufError,
)

from infra.errors import ConfigError, VersionMismatchError
from infra.storage import sha256_of, write_atomically
from models.encoder_graphs import AudioGraph, FrameGraph, TextGraph
from models.encoder_manifest import (
    MANIFEST_FILE,
    EncoderSpec,
    FrameSpec,
    TextSpec,
    check_files,
    inside,
    read_specs,
)


def load_own(folder: Path) -> tuple[EncoderSpec, ...]:
    """Return the encoders that a folder declares, their files there and as announced; no graph was opened.

    Raises:
        ConfigError: the folder has no manifest, it has a mistake, or a graph reads weights that it does not announce.
        VersionMismatchError: a file is missing or is not the announced one.
    """
    specs = _declared(folder)
    way_out = f"`freshet encoders check {folder} --write` fills in each sha256 that is empty"
    for spec in specs:
        check_files(folder, spec, way_out=way_out)
        unlisted = [name for name in _weights(folder, spec) if name not in spec.assets]
        if unlisted:
            raise ConfigError(
                f"{folder / spec.file} keeps weights in {', '.join(unlisted)}, which its assets do not list: {way_out}"
            )
    return specs


def try_encoder(directory: Path, spec: EncoderSpec) -> None:
    """Return when an encoder's graph does what its declaration says.

    Raises: ConfigError: it does not, and in what.
    """
    if isinstance(spec, TextSpec):
        TextGraph(directory, spec)
    elif isinstance(spec, FrameSpec):
        FrameGraph(directory, spec)
    else:
        AudioGraph(directory, spec)


def published(spec: EncoderSpec) -> EncoderSpec:
    """Return the spec of an encoder whose files are in a folder named by their content.

    A graph finds its weights by their names, so these stay, and other files never come under the same path.
    """
    below = _folder_of(spec)
    moved = replace(
        spec,
        file=f"{below}/{spec.file}",
        assets={f"{below}/{name}": announced for name, announced in spec.assets.items()},
    )
    if not isinstance(moved, TextSpec):
        return moved
    tokenizer = f"{below}/{moved.preprocessing.tokenizer}"
    return replace(moved, preprocessing=replace(moved.preprocessing, tokenizer=tokenizer))


def copy_own(directory: Path, folder: Path, spec: EncoderSpec) -> None:
    """Copy an encoder's files from the user's folder to where its published spec has them.

    Raises: VersionMismatchError: a file is not the announced one any more.
    """
    below = directory / _folder_of(spec)
    for name, announced in spec.files.items():
        data = inside(folder, name).read_bytes()
        if sha256(data).hexdigest() != announced:
            raise VersionMismatchError(f"{folder / name} changed while it was copied: try again")
        write_atomically(below / name, data)


def _folder_of(spec: EncoderSpec) -> str:
    content = sha256(json.dumps(sorted(spec.files.items())).encode()).hexdigest()
    return f"own-{spec.modality}-{content[:12]}"


def write_hashes(folder: Path) -> Sequence[str]:
    """Fill in each sha256 that the folder's manifest leaves empty, weights beside graphs too; return the files' names.

    A hash that is there stays, right or wrong.
    """
    specs = _declared(folder)
    path = folder / MANIFEST_FILE
    document = json.loads(path.read_text())
    written: list[str] = []
    for entry, spec in zip(document["encoders"], specs, strict=True):
        names = {name: "" for name in _weights(folder, spec)} | spec.files
        for name, announced in names.items():
            if announced:
                continue
            found = sha256_of(_existing(folder, name))
            written.append(name)
            if name == spec.file:
                entry["sha256"] = found
            else:
                entry.setdefault("assets", {})[name] = found
    if written:
        write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
    return written


def _declared(folder: Path) -> tuple[EncoderSpec, ...]:
    if not (folder / MANIFEST_FILE).is_file():
        raise ConfigError(
            f"{folder} has no {MANIFEST_FILE}: the README's section on encoders has examples of one"
        )
    specs = read_specs(folder)
    if not specs:
        raise ConfigError(f"{folder / MANIFEST_FILE} declares no encoder: name one, two or three")
    return specs


def _existing(folder: Path, name: str) -> Path:
    path = inside(folder, name)
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: put it there, or correct its name in {MANIFEST_FILE}"
        )
    return path


def _weights(folder: Path, spec: EncoderSpec) -> list[str]:
    """Return the files, other than itself, that a graph reads weights from, relative to the folder."""
    try:
        model = onnx.load(str(_existing(folder, spec.file)), load_external_data=False)
    except ProtobufError as error:
        raise ConfigError(f"{folder / spec.file} is no ONNX graph: {error}") from error
    beside = PurePosixPath(spec.file).parent
    return sorted({str(beside / location) for location in _locations(model)})


def _locations(message: Any) -> Iterator[str]:
    """Yield where tensors outside the file are, wherever in the graph they are named."""
    if isinstance(message, onnx.TensorProto):
        yield from (each.value for each in message.external_data if each.key == "location")
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        nested = value if field.is_repeated else [value]
        for each in nested:
            yield from _locations(each)

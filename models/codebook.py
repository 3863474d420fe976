"""A codebook: one fitted quantizer as files, whose hashes and origin are written down beside it.

    encoders/                        the encoders that every codebook of this store was fitted on
    codebooks/<version>/codebook.json  written after the files it names
    codebooks/current.json           which version is in use; written last of all

Knows nothing of torch (a worker starts without it), of Kafka, and of how a quantizer is fitted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from infra.errors import ConfigError, VersionMismatchError
from infra.storage import ObjectStore, sha256_of
from models.semantic_id import SemanticIdSpace

ENCODERS_KEY = "encoders"
CODEBOOKS_KEY = "codebooks"
CURRENT_KEY = f"{CODEBOOKS_KEY}/current.json"
MANIFEST_FILE = "codebook.json"
GRAPH_FILE = "quantizer.onnx"
WEIGHTS_FILE = "quantizer.safetensors"


def codebook_key(codebook_version: int) -> str:
    """Return where a codebook is in the object store."""
    return f"{CODEBOOKS_KEY}/{codebook_version}"


@dataclass(frozen=True, kw_only=True)
class CodebookManifest:
    """What `codebook.json` says.

    Attributes:
        codebook_version: grows by one with every newly fitted quantizer.
        codebook_sizes: codes per level, coarse to fine.
        disambiguation_size: how many videos may share all codes.
        embedding_dim: dimensions of the fused embedding.
        encoders_sha256: digest of the manifest of the encoders it was fitted on.
        quantizer: the quantizer's config.
        card: how well it fitted its catalogue; see `models.codebook_card`.
        files: name -> sha256.
    """

    codebook_version: int
    codebook_sizes: tuple[int, ...]
    disambiguation_size: int
    embedding_dim: int
    encoders_sha256: str
    quantizer: Mapping[str, Any]
    card: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def space(self) -> SemanticIdSpace:
        """The semantic IDs that can exist under this codebook."""
        return SemanticIdSpace(
            codebook_version=self.codebook_version,
            codebook_sizes=self.codebook_sizes,
            disambiguation_size=self.disambiguation_size,
        )

    def to_json(self) -> bytes:
        """Return the bytes of `codebook.json`."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


def next_version(store: ObjectStore) -> int:
    """Return the version after the newest one, whether that one was completed or not."""
    found = [key.split("/")[1] for key in store.list(CODEBOOKS_KEY)]
    return 1 + max((int(part) for part in found if part.isdigit()), default=0)


def published_versions(store: ObjectStore) -> tuple[int, ...]:
    """Return the versions of all complete codebooks, oldest first."""
    keys = (key.split("/") for key in store.list(CODEBOOKS_KEY))
    return tuple(sorted(int(key[1]) for key in keys if key[-1] == MANIFEST_FILE))


def publish_codebook(
    store: ObjectStore, manifest: CodebookManifest, files: Mapping[str, bytes]
) -> CodebookManifest:
    """Store a codebook and make it the current one; return its manifest with the files' hashes.

    The order is the guarantee: files, then the manifest that names them, then `current.json`. Until that
    last write every reader finds the former codebook, whole.
    """
    manifest = replace(
        manifest, files={name: sha256(data).hexdigest() for name, data in files.items()}
    )
    key = codebook_key(manifest.codebook_version)
    for name, data in files.items():
        store.put_bytes(f"{key}/{name}", data)
    digest = store.put_bytes(f"{key}/{MANIFEST_FILE}", manifest.to_json())
    current = {"codebook_version": manifest.codebook_version, "sha256": digest}
    store.put_bytes(CURRENT_KEY, json.dumps(current).encode())
    return manifest


def current_codebook(store: ObjectStore, cache: Path) -> tuple[CodebookManifest, Path]:
    """Return the current codebook's manifest and a local folder with its files, all hashes checked.

    Raises:
        ConfigError: no codebook was published yet.
        VersionMismatchError: a file is not the one that was published.
    """
    manifest = current_manifest(store)
    directory = store.local_directory(codebook_key(manifest.codebook_version), cache)
    for name, announced in manifest.files.items():
        path = directory / name
        found = sha256_of(path) if path.is_file() else "no file"
        if found != announced:
            raise VersionMismatchError(
                f"{directory / name} has sha256 {found}, its manifest says {announced}: not loaded; "
                "run `freshet bootstrap` to publish a new codebook"
            )
    return manifest, directory


def current_manifest(store: ObjectStore) -> CodebookManifest:
    """Return the current codebook's manifest without its files; raises like `current_codebook`."""
    if not store.exists(CURRENT_KEY):
        raise ConfigError(f"{CURRENT_KEY} is not in the object store: run `freshet bootstrap`")
    current = json.loads(store.get_bytes(CURRENT_KEY))
    key = f"{codebook_key(current['codebook_version'])}/{MANIFEST_FILE}"
    document = json.loads(store.get_bytes(key, sha256=current["sha256"]))
    document["codebook_sizes"] = tuple(document["codebook_sizes"])
    return CodebookManifest(**document)

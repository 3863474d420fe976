"""How codes and embeddings are written in `video.codes`; knows nothing of how they are computed."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray


def codes_key(codebook_version: int, codes: tuple[int, ...]) -> str:
    """Return the key that all videos with these codes share, such as `1:228-204-19`."""
    return f"{codebook_version}:{'-'.join(map(str, codes))}"


def encode_embedding(embedding: NDArray[np.float16]) -> str:
    """Return an embedding as events carry it: base64 of little-endian float16."""
    return base64.b64encode(embedding.astype("<f2").tobytes()).decode()


def decode_embedding(text: str) -> NDArray[np.float16]:
    """Return the embedding that an event carries."""
    return np.frombuffer(base64.b64decode(text), dtype="<f2")

"""The semantic ID: a tuple of codes, coarse to fine, ending in a disambiguation code.

Knows nothing of how codes are computed.

Shape suffixes in models/: B batch, L levels (the disambiguation level included), K codebook size, D embedding dim.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SemanticId = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SemanticIdSpace:
    """Which semantic IDs can exist under one codebook_version.

    Attributes:
        codebook_version: grows by one with every newly fitted quantizer.
        codebook_sizes: codes per level, coarse to fine; PLUM (2510.07784) halves the size each level.
        disambiguation_size: how many videos may share all codes.
    """

    codebook_version: int
    codebook_sizes: tuple[int, ...]
    disambiguation_size: int = 64

    def __post_init__(self) -> None:
        if self.bits > 63:
            raise ValueError(
                f"level sizes {self.level_sizes} need {self.bits} bits; a packed semantic ID has 63"
            )

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes per level, the disambiguation level last."""
        return (*self.codebook_sizes, self.disambiguation_size)

    @property
    def num_levels(self) -> int:
        """Levels with the disambiguation level."""
        return len(self.codebook_sizes) + 1

    @cached_property
    def level_bits(self) -> tuple[int, ...]:
        """Bits of each level in a packed key."""
        return tuple(max(1, (size - 1).bit_length()) for size in self.level_sizes)

    @cached_property
    def bits_below(self) -> tuple[int, ...]:
        """Bits of a packed key that are left behind the first 0, 1, … levels; 0 behind all."""
        return tuple(sum(self.level_bits[level:]) for level in range(self.num_levels + 1))

    @cached_property
    def bits(self) -> int:
        """Bits of a packed key."""
        return sum(self.level_bits)

    def pack(self, semantic_ids_BL: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return one int64 key per semantic ID; keys sort as the tuples do.

        Raises:
            ValueError: a code lies outside its level.
        """
        ids_BL = np.atleast_2d(np.asarray(semantic_ids_BL, dtype=np.int64))
        if ids_BL.shape[1] != self.num_levels:
            raise ValueError(f"got {ids_BL.shape[1]} levels, expected {self.num_levels}")
        if (ids_BL < 0).any() or (ids_BL >= np.array(self.level_sizes)).any():
            raise ValueError(f"a code lies outside the level sizes {self.level_sizes}")
        keys_B = np.zeros(len(ids_BL), dtype=np.int64)
        for level, bits in enumerate(self.level_bits):
            keys_B = (keys_B << bits) | ids_BL[:, level]
        return keys_B

    def unpack(self, keys_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the semantic IDs [B, L] behind packed keys."""
        ids_BL = np.empty((len(keys_B), self.num_levels), dtype=np.int64)
        rest_B = keys_B.copy()
        for level in reversed(range(self.num_levels)):
            bits = self.level_bits[level]
            ids_BL[:, level] = rest_B & ((1 << bits) - 1)
            rest_B >>= bits
        return ids_BL


def format_semantic_id(semantic_id: SemanticId) -> str:
    """Return the form people read, `A228 B204 C196 D0`."""
    return " ".join(f"{chr(ord('A') + level)}{code}" for level, code in enumerate(semantic_id))


def parse_semantic_id(text: str) -> SemanticId:
    """Return the tuple behind `A228 B204 C196 D0`.

    Raises:
        ValueError: the text is not of that form.
    """
    parts = text.split()
    codes = []
    for level, part in enumerate(parts):
        match = re.fullmatch(r"([A-Z])(\d+)", part)
        if match is None or match[1] != chr(ord("A") + level):
            raise ValueError(f"{text!r} is not a semantic ID such as 'A228 B204 C196 D0'")
        codes.append(int(match[2]))
    if not codes:
        raise ValueError("an empty text is not a semantic ID such as 'A228 B204 C196 D0'")
    return tuple(codes)


def code_token(level: int, code: int) -> str:
    """Return the LLM's token for one code: `<a_228>` on level 0."""
    return f"<{chr(ord('a') + level)}_{code}>"

"""How healthy the codebook is, as the semantic IDs that it gave out tell; knows nothing of quantizers."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from streams.events import SemanticIdAssigned


class CodebookHealth(msgspec.Struct):
    """Of the newest codebook that any semantic ID is of; what an older one gave out does not count.

    Attributes:
        codebook_version: 0 before any.
        assigned: semantic IDs, those of edits included.
        shared: of these, the ones whose codes another video had before.
        usage: by level, how often each code was given out.
    """

    codebook_version: int = 0
    assigned: int = 0
    shared: int = 0
    usage: list[dict[int, int]] = msgspec.field(default_factory=list)

    def add(self, event: SemanticIdAssigned) -> None:
        """Count a semantic ID; one of a newer codebook begins anew."""
        if event.codebook_version < self.codebook_version:
            return
        if event.codebook_version > self.codebook_version:
            self.codebook_version, self.assigned, self.shared = event.codebook_version, 0, 0
            self.usage = []
        self.assigned += 1
        self.shared += event.disambiguation_code > 0
        while len(self.usage) < len(event.codes):
            self.usage.append({})
        for used, code in zip(self.usage, event.codes, strict=False):
            used[code] = used.get(code, 0) + 1

    def report(self) -> dict[str, Any]:
        """Return the share of codes that no other video had before, and how many codes each level lives on.

        `perplexity` is of the codes' distribution: as many codes, used equally often, would be as hard to guess.
        """
        return {
            "codebook_version": self.codebook_version or None,
            "videos": self.assigned,
            "unique_share": 1 - self.shared / self.assigned if self.assigned else None,
            "usage": [
                {"level": level, "codes_used": len(used), "perplexity": round(_perplexity(used), 2)}
                for level, used in enumerate(self.usage)
            ],
        }


def _perplexity(used: dict[int, int]) -> float:
    counted = sum(used.values())
    shares = [count / counted for _, count in sorted(used.items())]
    return math.exp(-math.fsum(share * math.log(share) for share in shares))

"""What one request may be shown of the live videos; knows nothing of how the trie finds it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Filters:
    """A video passes when it passes all of these.

    Attributes:
        uploaded_after_ms: at that moment or later, UTC epoch milliseconds; None: at any time.
        excluded_video_ids: not these; those that are not live exclude nothing.
        excluded_channels: of none of these; those of which no video is live exclude nothing.
        languages: in one of these; empty: in any. A video without a language passes only then.
    """

    uploaded_after_ms: int | None = None
    excluded_video_ids: Collection[str] = ()
    excluded_channels: Collection[str] = ()
    languages: Collection[str] = ()

    def __bool__(self) -> bool:
        """Return whether there is anything to filter by."""
        return self.uploaded_after_ms is not None or any(
            len(each) for each in (self.excluded_video_ids, self.excluded_channels, self.languages)
        )


NO_FILTERS = Filters()

"""The figures that the page shows, as the freshness worker writes them when it knows all of them."""

from __future__ import annotations

import math
from typing import Any

HOUR_MS = 3_600_000
ARMS = ("lrm", "lrm_fresh", "two_tower_cluster", "two_tower_hash")
TITLES = (
    "A slow train through the Alps, in winter light",
    "Why octopuses dream",
    "Sourdough for people who have no time",
    "The night sky from the darkest place in Europe",
    "Building a cello: the scroll",
)


def figures(now_ms: int, **more: Any) -> dict[str, Any]:
    """Return figures written at a time; `more` stands in place of the whole's entries."""
    hour_ms = now_ms // HOUR_MS * HOUR_MS
    return {
        "written_time_ms": now_ms,
        "impressions": 48_200,
        "new_impressions": 7_182,
        "coverage": 0.149,
        "by_arm": {},
        "event_time_ms": now_ms,
        "cold_start": {
            "new_max_age_h": 24.0,
            "window_h": 24.0,
            "view_threshold": 20,
            "newest_hours": 168,
            "arms": {arm: _arm(number, hour_ms) for number, arm in enumerate(ARMS)},
        },
        "delays_s": {
            "upload_to_sid": _delays(1_204, 0.412, 1.9),
            "upload_to_servable": _delays(1_201, 0.731, 2.6),
            "upload_to_first_shown": _delays(1_077, 14.2, 310.0),
            "upload_to_first_watched": _delays(950, 88.0, 2_400.0),
            "watch_to_shard": _delays(61_000, 6.1, 11.0),
            "shard_to_checkpoint": _delays(44, 31.0, 74.0),
            "checkpoint_to_serving": _delays(44, 1.2, 3.4),
            "watch_to_serving": _delays(61_000, 58.0, 121.0),
        },
        "model_version": 44,
        "model_versions": {"lrm": 44, "two_tower_cluster": 40, "two_tower_hash": 40},
        "model_age_s": {"lrm": 63.0, "two_tower_cluster": 190.0, "two_tower_hash": 190.0},
        "trained_until_ms": {"lrm": now_ms - 63_000},
        "codebook": {
            "codebook_version": 1,
            "videos": 9_742,
            "unique_share": 0.981,
            "usage": [
                {"level": level, "codes_used": used, "perplexity": used * 0.8}
                for level, used in enumerate((256, 128, 64))
            ],
        },
        "newest_uploads": [_upload(number, now_ms) for number in range(12)],
        "swaps": 44,
        "swaps_rejected": 1,
        "swaps_newest": [swap(44 - number, now_ms - 61_000 * number) for number in range(8)],
        "prequential": [
            {
                "model_name": name,
                "model_version": version,
                "time_ms": now_ms - 61_000 * (44 - version),
                "recall_at_10": top * (1 - math.exp(-version / 9)) + 0.012 * math.sin(version),
                "by_earlier_watches": {"0": 0.07, "1-4": 0.16, "5+": 0.24},
            }
            for name, top in (("lrm", 0.21), ("two_tower_cluster", 0.16), ("two_tower_hash", 0.11))
            for version in range(1, 45)
        ],
        **more,
    }


def _delays(count: int, p50: float, p99: float) -> dict[str, Any]:
    """What ended recently took a little less than all so far."""
    recent = {"count": count // 20, "p50": 0.9 * p50, "p99": 0.9 * p99}
    return {"count": count, "p50": p50, "p99": p99, "recent": recent}


def _arm(number: int, hour_ms: int) -> dict[str, Any]:
    coverage = (0.141, 0.239, 0.118, 0.092)[number]
    reached = (0.31, 0.44, 0.28, 0.17)[number]
    impressions, new_videos = 12_050, 410
    return {
        "share_of_users": 0.25,
        "impressions": impressions,
        "new_impressions": round(coverage * impressions),
        "coverage": coverage,
        "new_videos": new_videos,
        "new_videos_shown": round(2 * reached * new_videos),
        "shown_share": 2 * reached,
        "view_threshold": 5,
        "reached": round(reached * new_videos),
        "reached_share": reached,
        "time_to_threshold_s": {"count": 120, "p50": 5_200 / (1 + reached), "p90": 31_000.0},
        "effective_vocabulary": 3_120 - 410 * number,
        "clicks_per_impression": 0.121 - 0.011 * number,
        "likes_per_impression": 0.021 - 0.003 * number,
        "watched_s_per_impression": 18.4 - 1.9 * number,
        "surfaces": {
            surface: {
                "impressions": shown,
                "coverage": coverage,
                "clicks_per_impression": 0.1,
                "likes_per_impression": 0.02,
                "shown_share": reached,
                "reached_share": reached / 2,
                "time_to_threshold_s": {"count": 60, "p50": 9_000.0, "p90": 40_000.0},
            }
            for surface, shown in (("home", 9_000), ("shorts", 3_050))
        },
        "hours": [
            {
                "hour_start_ms": hour_ms - HOUR_MS * (23 - hour),
                "impressions": 500,
                "new_impressions": 60,
                "coverage": coverage * (0.7 + 0.3 * math.sin(hour / 4 + number)),
                "velocity": reached * (0.8 + 0.2 * math.cos(hour / 3 + number)),
            }
            for hour in range(24)
        ],
    }


def _upload(number: int, now_ms: int) -> dict[str, Any]:
    uploaded_ms = now_ms - 700 - 9_000 * number
    far = min(4, number)
    after_s = (0.4, 0.8, 21.0, 63.0)
    steps = ("assigned_ms", "servable_ms", "first_shown_ms", "first_watched_ms")
    return {
        "video_id": f"v-{number}",
        "title": TITLES[number % len(TITLES)],
        "upload_time_ms": uploaded_ms,
        "uploaded_ms": uploaded_ms,
        **{
            step: uploaded_ms + round(1000 * after_s[place]) if place < far else None
            for place, step in enumerate(steps)
        },
    }


def swap(version: int, time_ms: int) -> dict[str, Any]:
    """Return a swap as the figures tell of it; version 41 is one that was refused."""
    refused = version == 41
    return {
        "model_name": "lrm",
        "model_version": version,
        "outcome": "rejected" if refused else "succeeded",
        "reason": "the weights are not those that were announced" if refused else "",
        "swapped_time_ms": time_ms,
        "replica": "r1",
    }

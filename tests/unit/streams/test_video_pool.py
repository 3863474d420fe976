from __future__ import annotations

from statistics import fmean, pstdev

import pytest

from infra.settings import load_settings
from streams.video_pool import UNNAMED_SHARE, VideoPool, load_pool
from tests.viewer_factories import TOPICS, small_pool


@pytest.fixture(scope="module")
def pool() -> VideoPool:
    return load_pool(load_settings({}))


def test_packaged_pool_has_real_titles_genres_and_tags(pool: VideoPool) -> None:
    videos = {one.video_id: one for one in pool.videos}
    assert len(videos) == len(pool.videos) > 9_000
    matrix = videos["ml-2571"]
    assert matrix.upload.title == "The Matrix (1999)"
    assert matrix.upload.tags
    assert {"Action", "Sci-Fi", "Thriller"} <= {
        topic for topic, share in zip(pool.topics, matrix.topic_shares, strict=True) if share > 0.2
    }


def test_quality_is_what_people_rated(pool: VideoPool) -> None:
    quality = {one.video_id: one.quality for one in pool.videos}
    assert fmean(quality.values()) == pytest.approx(0, abs=0.05)
    assert pstdev(quality.values()) == pytest.approx(1, abs=0.05)
    shawshank, battlefield_earth = quality["ml-318"], quality["ml-3593"]
    assert shawshank > 1.5 > -1.5 > battlefield_earth


def test_each_video_is_about_what_it_names_and_something_that_it_does_not() -> None:
    pool = small_pool()
    assert pool.topics == TOPICS
    for at, one in enumerate(pool.videos):
        assert one.topic_shares.sum() == pytest.approx(1)
        assert one.topic_shares[at % len(TOPICS)] >= 1 - UNNAMED_SHARE
        assert 60 <= one.duration_s <= 1800
    by_name = {
        int(one.topic_shares.argsort()[-2]) for one in pool.videos if one.topic_shares.max() < 1
    }
    assert len(by_name) == len(TOPICS)


def test_a_pool_is_a_function_of_its_data() -> None:
    first, again = (
        [
            (one.upload.model_dump(exclude={"event_id"}), one.topic_shares.tolist(), one.quality)
            for one in small_pool().videos
        ]
        for _ in range(2)
    )
    assert first == again

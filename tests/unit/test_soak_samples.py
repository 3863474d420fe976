"""Memory that leaks and disk that grows are found; what is flat, or falls, or fills up at first, is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streams.topics import HISTORIES, SERVABLE, WATCHES
from tests.soak.disk import FORGOTTEN_AREAS, area_of, log_problems
from tests.soak.options import SoakOptions, topic_configs
from tests.soak.processes import Process
from tests.soak.samples import (
    MB,
    Bound,
    Sample,
    bound_problems,
    grown,
    memory_problems,
    slope,
    thirds_problems,
)

LOAD_S = 1_800
OLD, YOUNG = Process("uploads", 1, 0.0), Process("uploads", 2, 900.0)


def samples(own: Callable[[float], float], *, process: Process = OLD) -> list[Sample]:
    return [
        Sample(at_s, {process: round(own(at_s))}, {}, records=at_s) for at_s in range(0, LOAD_S, 5)
    ]


def of_disk(held: Callable[[float], float], area: str = "shards") -> list[Sample]:
    return [Sample(at_s, {}, {area: round(held(at_s))}, at_s) for at_s in range(0, LOAD_S, 5)]


def test_memory_that_stays_is_flat_also_with_peaks() -> None:
    peaks = samples(lambda at_s: 300 * MB + (200 * MB if at_s % 60 == 0 else 0))
    assert memory_problems(peaks, load_s=LOAD_S) == []


def test_memory_that_fills_up_at_first_is_flat() -> None:
    filled = samples(lambda at_s: 100 * MB + min(at_s, 150) * MB)
    assert memory_problems(filled, load_s=LOAD_S) == []


@pytest.mark.parametrize("mb_per_minute", [1, 5, 60])
def test_memory_that_leaks_is_found(mb_per_minute: float) -> None:
    leaking = samples(lambda at_s: 100 * MB + mb_per_minute * MB * at_s / 60)
    (problem,) = memory_problems(leaking, load_s=LOAD_S)
    assert "memory of uploads (1) grew" in problem


def test_leak_is_found_although_the_process_was_killed_in_between() -> None:
    leaking = [
        Sample(
            at_s, {OLD if at_s < 900 else YOUNG: (100 + at_s % 900 // 20) * MB}, {}, records=at_s
        )
        for at_s in range(0, LOAD_S, 5)
    ]
    assert len(memory_problems(leaking, load_s=LOAD_S)) == 2


def test_memory_of_nobody_is_no_proof() -> None:
    assert memory_problems([], load_s=LOAD_S) != []


def test_broker_may_fill_its_heap_and_no_more() -> None:
    broker = Process("kafka", 3, 0.0)
    filling = samples(lambda at_s: 300 * MB + at_s / LOAD_S * 250 * MB, process=broker)
    beyond = samples(lambda at_s: 300 * MB + at_s / LOAD_S * 900 * MB, process=broker)
    assert memory_problems(filling, load_s=LOAD_S) == []
    assert memory_problems(beyond, load_s=LOAD_S) != []


def test_life_that_was_too_short_is_not_judged() -> None:
    short = [one for one in samples(lambda at_s: at_s * MB) if one.at_s < 200]
    assert grown(short, load_s=LOAD_S) == []


def test_slope_is_that_of_the_line_through_most_points() -> None:
    line = [(float(x), 3.0 * x + 1) for x in range(30)]
    line[5], line[20] = (5.0, 1e9), (20.0, -1e9)
    assert slope(line) == pytest.approx(3.0)
    assert slope(line[:1]) == 0.0


BOUND = Bound("shards", whole_s=200, kept_s=300)


def test_disk_that_keeps_what_its_retention_says_is_bounded() -> None:
    sawtooth = of_disk(lambda at_s: 50_000 * (at_s if at_s < 250 else 200 + at_s % 100))
    assert bound_problems(sawtooth, BOUND) == []


def test_disk_that_grows_with_what_is_sent_is_found() -> None:
    (problem,) = bound_problems(of_disk(lambda at_s: 50_000 * at_s), BOUND)
    assert "kept for 300 s" in problem


def counted(held: Callable[[float], float], came_in: Callable[[float], float]) -> list[Sample]:
    return [
        Sample(at_s, {}, {"shards": round(held(at_s))}, at_s, {"shards": round(came_in(at_s))})
        for at_s in range(0, LOAD_S, 5)
    ]


def test_disk_may_grow_with_what_comes_in_where_that_is_counted() -> None:
    def came_in(at_s: float) -> float:
        return 20 * at_s**2  # faster and faster, as shards whose histories grow

    def kept_for(seconds: float) -> Callable[[float], float]:
        return lambda at_s: came_in(at_s) - came_in(max(0.0, at_s - seconds))

    assert bound_problems(counted(kept_for(300), came_in), BOUND) == []
    (problem,) = bound_problems(counted(kept_for(500), came_in), BOUND)
    assert "came in within 300 s" in problem


def test_disk_of_a_run_that_is_too_short_is_not_judged() -> None:
    assert BOUND.is_judged(LOAD_S)
    assert not BOUND.is_judged(400)


def test_area_of_the_newest_few_may_not_grow_from_the_second_third_to_the_last() -> None:
    assert thirds_problems(of_disk(lambda at_s: 40 * MB + at_s % 30), "shards", load_s=LOAD_S) == []
    assert thirds_problems(of_disk(lambda at_s: at_s * MB), "shards", load_s=LOAD_S) != []
    one_more = of_disk(
        lambda at_s: (40 if at_s < 0.8 * LOAD_S or at_s > 0.85 * LOAD_S else 60) * MB
    )
    assert thirds_problems(one_more, "shards", load_s=LOAD_S) == []


@pytest.mark.parametrize(
    ("path", "area"),
    [
        ("kafka/log/watch.events-3/00000000000000000000.log", "topics that forget"),
        ("kafka/log/user.histories-0/00000000000000000000.index", "compacted topics"),
        ("kafka/log/video.servable-1/00000000000000000000.log", "topics that are kept"),
        ("kafka/log/watch.events.dead_letters-1/a.log", "topics that are kept"),
        ("kafka/log/__consumer_offsets-7/00000000000000000000.log", "kafka's own"),
        ("kafka/broker.log", "logs"),
        ("logs/train.log.1", "logs"),
        ("store/shards/a.parquet", "shards"),
        ("store/checkpoints/lrm/000007/model.safetensors", "checkpoints"),
        ("freshness.state", "state"),
        ("catalogue.json", "other"),
    ],
)
def test_file_belongs_to_its_area(path: str, area: str) -> None:
    assert area_of(tuple(path.split("/"))) == area


def test_log_that_did_not_begin_anew_is_found(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "broker.log").write_bytes(b"")
    log = tmp_path / "logs" / "train.log"
    log.write_bytes(b"x" * 200)
    assert log_problems(tmp_path, max_bytes=100) == []
    log.write_bytes(b"x" * 201)
    assert "train.log has 201 bytes" in log_problems(tmp_path, max_bytes=100)[0]


def test_retention_is_shortened_where_records_are_forgotten_and_nowhere_else() -> None:
    configs = topic_configs(SoakOptions())
    assert configs[WATCHES.name]["retention.ms"] == "240000"
    assert "retention.ms" not in configs[HISTORIES.name]
    assert SERVABLE.name not in configs
    assert set(FORGOTTEN_AREAS) == {"topics that forget", "shards", "checkpoints", "logs"}


def test_run_that_is_too_short_for_its_retention_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        SoakOptions(minutes=1)

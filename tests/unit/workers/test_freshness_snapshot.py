from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from infra.claim import claim
from infra.errors import ConfigError
from streams.topics import IMPRESSIONS
from workers.freshness_rules import FreshnessRules
from workers.freshness_snapshot import LOCK_NAME, STATE_FILE, Snapshot, load_snapshot

IDS = {"serving.impressions": "a"}


def test_snapshot_that_was_saved_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    saved = load_snapshot(path, IDS)
    assert saved.advance(IMPRESSIONS, 2, 7)
    path.write_bytes(saved.to_bytes())
    assert load_snapshot(path, IDS) == saved


@pytest.mark.parametrize(
    "content",
    [b"", b"{", msgspec.msgpack.encode([]), msgspec.msgpack.encode({"group": 1})],
)
def test_snapshot_that_cannot_be_read_begins_anew_under_another_name(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / STATE_FILE
    path.write_bytes(content)
    one, two = load_snapshot(path, IDS), load_snapshot(path, IDS)
    assert one.next_offsets == {}
    assert one.group != two.group


def test_snapshot_of_topics_that_were_created_again_is_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    saved = load_snapshot(path, IDS)
    saved.advance(IMPRESSIONS, 0, 7)
    path.write_bytes(saved.to_bytes())
    assert load_snapshot(path, {"serving.impressions": "b"}).next_offsets == {}


def test_record_is_counted_once_in_each_partition() -> None:
    snapshot = Snapshot(group="g", topic_ids=IDS)
    offsets = [(0, 3), (0, 3), (0, 5), (0, 4), (1, 3)]
    assert [snapshot.advance(IMPRESSIONS, *at) for at in offsets] == [
        True, False, True, False, True,
    ]  # fmt: skip


def test_second_worker_on_a_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with claim(tmp_path / LOCK_NAME, "test"), pytest.raises(ConfigError, match="FRESHET_VAR_DIR"):
        claim(tmp_path / LOCK_NAME, "test")
    claim(tmp_path / LOCK_NAME, "test").close()


def test_snapshot_of_another_format_is_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    saved = load_snapshot(path, IDS)
    saved.advance(IMPRESSIONS, 0, 7)
    saved.format_version += 1
    path.write_bytes(saved.to_bytes())
    assert load_snapshot(path, IDS).next_offsets == {}


def test_figures_go_by_the_settings_of_today(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    path.write_bytes(load_snapshot(path, IDS).to_bytes())
    rules = FreshnessRules(view_threshold=3)
    assert load_snapshot(path, IDS, rules).figures.rules == rules

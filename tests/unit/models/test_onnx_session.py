"""How many threads a session gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models import onnx_session


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("6400000 100000", 8)],
)
def test_available_cpus_with_a_cgroup_quota_is_the_smaller_of_quota_and_affinity(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(onnx_session, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert onnx_session.available_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3)])
def test_available_cpus_with_a_version_1_cgroup_reads_its_two_files(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    monkeypatch.setattr(onnx_session, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(onnx_session, "_CGROUP_V1", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert onnx_session.available_cpus() == expected


def test_available_cpus_without_a_cgroup_is_the_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_session, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(onnx_session, "_CGROUP_V1", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert onnx_session.available_cpus() == 2

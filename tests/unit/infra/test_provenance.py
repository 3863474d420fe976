"""What a measurement was taken on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from infra import provenance


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the checkout."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Cleo", "-c", "user.email=cleo@example.com")
    subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )


def test_commit_outside_a_checkout_is_unknown(repository: Path) -> None:
    assert provenance.commit() == "unknown"


def test_commit_where_git_is_missing_is_unknown(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == "unknown"


def test_commit_with_changed_files_is_marked_dirty(repository: Path) -> None:
    git(repository, "init", "--quiet")
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "first")
    clean = provenance.commit()
    assert len(clean) == 40

    (repository / "pancakes").touch()
    assert provenance.commit() == f"{clean}-dirty"


def test_versions_name_every_direct_dependency_and_the_broker() -> None:
    versions = provenance.versions()
    assert {"python", "freshet", "apache-kafka", "torch", "ray", "confluent-kafka"} <= set(versions)
    assert "pytest" not in versions
    assert all(versions.values())


def test_hardware_has_at_least_one_core_and_some_memory() -> None:
    hardware = provenance.hardware()
    assert isinstance(hardware["cores"], float)
    assert 0 < hardware["cores"] <= (psutil.cpu_count() or 0)
    assert hardware["memory_bytes"] == psutil.virtual_memory().total

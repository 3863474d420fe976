"""Imports point one way, and the check that says so can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / ".importlinter"
PACKAGES = ("infra", "models", "serve", "streams", "workers")
LINT = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-cache", "--config", str(CONFIG)]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)


def test_imports_point_from_processes_to_contracts_to_infrastructure() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("package", "imported"),
    [("models", "ray"), ("streams", "torch"), ("workers", "serve"), ("infra", "streams"), ("serve", "freshet")],
)  # fmt: skip
def test_import_against_the_direction_is_refused(
    tmp_path: Path, package: str, imported: str
) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    assert lint_imports(tmp_path).returncode == 0

    (tmp_path / package / "wrong.py").write_text(f"import {imported}\n")
    result = lint_imports(tmp_path)

    assert result.returncode == 1
    assert f"{package}.wrong -> {imported}" in result.stdout

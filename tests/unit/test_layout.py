"""The house rules that a machine can check: sizes, names, paths. What ruff and mypy check is not repeated here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("infra", "models", "serve", "streams", "workers")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60  # without the docstring: a contract that is spelled out must not cost code
BANNED_FILES = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
# One word per concept; these belong to others. The README's glossary has ours.
BANNED_WORDS = {
    "finetune": "continued_pretraining",
    "finetuning": "continued_pretraining",
    "hierarchies": "levels",
    "hierarchy": "level",
    "midtrain": "continued_pretraining",
    "proba": "log_prob",
    "probas": "log_prob",
    "ts": "a time with its unit, such as event_time_ms",
}
# Folders of this or that machine; what a container image lays out for itself is not meant.
MACHINE_PATH = re.compile(r"(?<![\w.}/-])/(?:work|root|home|Users|mnt)/\w+")
TEXT_SUFFIXES = {"", ".json", ".lock", ".md", ".properties", ".py", ".sh", ".toml", ".txt", ".yml"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    folders = [ROOT / name for name in (*PACKAGES, "tests")]
    return [
        ROOT / "freshet.py",
        *sorted(path for folder in folders for path in folder.rglob("*.py")),
    ]


def texts() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT_SUFFIXES)
    for name in (*PACKAGES, "tests", ".ci"):
        for path in (ROOT / name).rglob("*"):
            in_cache = "__pycache__" in path.parts
            if path.is_file() and path.suffix in TEXT_SUFFIXES and not in_cache:
                yield path


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def num_lines(function: Function) -> int:
    """Lines from `def` to the end, decorators and docstring left out."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def names_in(tree: ast.AST) -> Iterator[str]:
    """Names that we give: of functions, classes, parameters and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("path", sources(), ids=named)
def test_source_file_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    long_functions = {
        node.name: num_lines(node)
        for node in ast.walk(tree)
        if isinstance(node, Function) and num_lines(node) > MAX_FUNCTION_LINES
    }
    banned = {
        name: f"say {BANNED_WORDS[word]}"
        for name in names_in(tree)
        for word in name.lower().split("_")
        if word in BANNED_WORDS
    }
    assert text.count("\n") <= MAX_FILE_LINES
    assert long_functions == {}
    assert banned == {}
    assert path.stem not in BANNED_FILES


@pytest.mark.parametrize("package", PACKAGES)
def test_package_file_holds_a_docstring_and_nothing_else(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree)
        assert len(tree.body) == 1, named(path)


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    found = {
        f"{named(path)}: {match.group()}"
        for path in texts()
        for match in MACHINE_PATH.finditer(path.read_text(errors="replace"))
    }
    assert found == set()


def test_rules_notice_what_they_forbid() -> None:
    function = ast.parse('def hierarchy(ts):\n    """Say."""\n    proba = 1\n').body[0]
    assert isinstance(function, ast.FunctionDef)
    assert num_lines(function) == 2
    assert set(names_in(function)) == {"hierarchy", "ts", "proba"}
    assert MACHINE_PATH.search("see /" + "home/cleo/data")
    assert not MACHINE_PATH.search("https://example.com/home/cleo")

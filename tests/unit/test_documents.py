"""What the documents say exists, and what exists they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from infra.settings import PREFIX, setting_fields
from streams.topics import ALL, DEAD_LETTERS
from tests import command_line, readme_blocks

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("infra", "models", "serve", "streams", "workers")
README = (ROOT / "README.md").read_text()


def shell_lines(program: str) -> list[str]:
    """Lines of shell blocks that call `program`, comments and prompts left out."""
    lines = [
        line.removeprefix("$ ").partition(" #")[0].strip()
        for shell in re.findall(r"```(?:sh|console)\n(.*?)```", README, re.S)
        for line in shell.splitlines()
    ]
    return sorted({line for line in lines if line.startswith(f"{program} ")})


@pytest.mark.parametrize(
    ("name", "content"), list(readme_blocks.blocks()), ids=lambda value: value[:8]
)
def test_generated_block_is_up_to_date(name: str, content: str) -> None:
    found = readme_blocks.block_pattern(name).findall(README)
    assert found == [content], "run `make docs`"


def test_unknown_argument_is_refused_before_the_readme_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(readme_blocks, "README", tmp_path / "README.md")
    with pytest.raises(SystemExit) as refused:
        readme_blocks.main(["--check"])
    assert refused.value.code == 2


def test_tree_names_every_module_under_its_folder() -> None:
    lines = readme_blocks.source_tree().splitlines()
    for path in readme_blocks.ALSO:
        assert (ROOT / path).exists(), path
    modules = {path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules - {"__init__.py"} <= {line.split()[0] for line in lines if line.strip()}


def test_every_variable_that_is_mentioned_is_a_setting() -> None:
    known = {name for name, _ in setting_fields()}
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "Makefile"):
        assert set(re.findall(rf"{PREFIX}\w+__\w+", path.read_text())) <= known, path.name


def test_every_command_in_the_readme_is_one_that_exists() -> None:
    assert shell_lines("freshet")
    for line in shell_lines("freshet"):
        command_line.accept(shlex.split(line)[1:])


def test_every_command_that_exists_is_in_the_readme() -> None:
    missing = [name for name in command_line.tree().commands if f"freshet {name}" not in README]
    assert missing == []


def test_every_command_has_help() -> None:
    def walk(command: object) -> list[object]:
        nested = getattr(command, "commands", {}).values()
        return [command, *(found for child in nested for found in walk(child))]

    assert [getattr(command, "name", "") for command in walk(command_line.tree())
            if not getattr(command, "help", "")] == []  # fmt: skip


def test_every_make_target_in_the_readme_exists_and_has_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    documented = set(re.findall(r"^([a-z-]+):.* ## .+", makefile, re.M))
    mentioned = {line.split()[1] for line in shell_lines("make")}
    phony = set(re.findall(r"^\.PHONY: (.+)", makefile, re.M)[0].split())
    assert {"demo", "test", "bench"} <= mentioned
    assert mentioned <= documented
    assert documented == phony


def test_every_topic_is_in_the_readme() -> None:
    names = {topic.name for topic in ALL if topic not in DEAD_LETTERS.values()}
    assert {name for name in names if f"`{name}`" not in README} == set()
    assert ".dead_letters`" in README


def test_changelog_opens_with_what_is_unreleased() -> None:
    headings = re.findall(r"^## (.+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"

"""Writes the README's generated blocks, tree and settings: `make docs`. A test compares, so neither ages.

What a file is said to be is the first clause of its docstring: the part before "; knows nothing of ...".
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.settings_table import settings_table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGES = ("streams", "models", "workers", "serve", "infra")
COMMENT_COLUMN = 28
# What has no docstring, by path. A folder that ends in / is not opened.
ALSO = {
    "streams/data/": "MovieLens ml-latest-small and two real clips, with their licences",
    "serve/dashboard/": "The page: its styles, its modules and, with their licences, the libraries it is built on",
    "infra/docker/": "One image for every process and for the Ray nodes",
    "infra/grafana/": "The provisioned data source and dashboard",
    "infra/prometheus/": "What is scraped, the objectives, the alerts, and what to do about them",
    "tests/unit/": "Mirrors the packages; no socket, no sleep",
    "tests/integration/": "Real Kafka, real Ray, real models, and kill -9",
    "tests/soak/": "`make soak`: half an hour of load, and every process killed once",
    "tests/bench/": "`make bench NAME=...`: prints and writes numbers, asserts none",
    "docker-compose.yml": "Everything in containers",
    "constraints.txt": "Every version, pinned (`make lock`)",
    "Makefile": "`make` alone says what there is to do",
}


def source_tree() -> str:
    """Return the annotated tree of the repository."""
    paths = {f"{name}/": _clause(ROOT / name / "__init__.py") for name in PACKAGES}
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*.py"):
            if path.name != "__init__.py":
                paths[str(path.relative_to(ROOT))] = _clause(path)
            elif path.parent.name not in PACKAGES:
                paths[f"{path.parent.relative_to(ROOT)}/"] = _clause(path)
    paths["tests/"] = "What must stay true"
    paths["freshet.py"] = _clause(ROOT / "freshet.py")
    lines = [_line(path, comment) for path, comment in sorted((paths | ALSO).items(), key=_order)]
    return "```text\n" + "\n".join(lines) + "\n```"


def _clause(path: Path) -> str:
    sentence = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    return re.split(r"; |\. |\.$|:$", sentence)[0]


def _order(item: tuple[str, str]) -> tuple[int, list[tuple[bool, str]]]:
    """Packages in their own order, then the tests, then single files; a folder after the files beside it."""
    path = item[0]
    parts = path.rstrip("/").split("/")
    tops = [*PACKAGES, "tests"]
    top = tops.index(parts[0]) if parts[0] in tops else len(tops)
    last = len(parts) - 1
    nested = [(n < last or path.endswith("/"), part) for n, part in enumerate(parts)]
    return top, nested[1:] or ([] if top < len(tops) else nested)


def _line(path: str, comment: str) -> str:
    parts = path.rstrip("/").split("/")
    name = "  " * (len(parts) - 1) + parts[-1] + ("/" if path.endswith("/") else "")
    return f"{name:<{COMMENT_COLUMN}} {comment}"


def block_pattern(name: str) -> re.Pattern[str]:
    """Return what finds a generated block; its group is what stands between the markers."""
    return re.compile(rf"(?<=<!-- {name}:start -->\n)(.*?)(?=<!-- {name}:end -->)", re.S)


def blocks() -> Iterator[tuple[str, str]]:
    """Yield each generated block's name with what belongs in it."""
    yield "tree", f"\n{source_tree()}\n\n"
    yield "settings", f"\n{settings_table()}\n\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the blocks into the README."""
    argparse.ArgumentParser(description="Write the README's generated blocks.").parse_args(
        arguments
    )
    text = README.read_text()
    for name, content in blocks():
        text = block_pattern(name).sub(lambda _, content=content: content, text)  # type: ignore[misc]
    README.write_text(text)


if __name__ == "__main__":
    main()

from __future__ import annotations

import hashlib
import re

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from serve.pages import FILES, HEADERS, add_page


def client() -> AsyncClient:
    app = FastAPI()
    add_page(app)
    return AsyncClient(transport=ASGITransport(app), base_url="http://freshet")


async def test_page_and_its_files_come_with_the_policy() -> None:
    async with client() as http:
        for path in ("/dashboard", "/dashboard/files/main.js", "/dashboard/files/page.css"):
            response = await http.get(path)
            assert response.status_code == 200
            assert {name: response.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("path", ["../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "none.js", ""])
async def test_nothing_but_the_files_of_the_folder_is_given_out(path: str) -> None:
    async with client() as http:
        assert (await http.get(f"/dashboard/files/{path}")).status_code == 404


def test_page_names_files_that_exist_and_nothing_from_elsewhere() -> None:
    page = (FILES / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(named) > 5
    for name in named:
        assert (FILES / name.removeprefix("dashboard/files/")).is_file(), name


def test_page_has_no_script_or_style_in_itself() -> None:
    page = (FILES / "index.html").read_text()
    assert re.findall(r"<style|style=|\son\w+=", page) == []
    assert all(
        "src=" in tag and not text for tag, text in re.findall(r"<script(.*?)>(.*?)</", page)
    )


def test_modules_import_files_that_exist() -> None:
    for module in FILES.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', module.read_text()):
            assert (FILES / name).is_file(), f"{module.name}: {name}"


def test_libraries_are_those_that_are_written_down_and_have_their_licences() -> None:
    vendor = FILES / "vendor"
    said = {
        cells[0]: (cells[1].split()[0], cells[4])
        for line in (vendor / "README.md").read_text().splitlines()
        if len(cells := re.findall(r"[^|`\s][^|`]*[^|`\s]", line)) == 5 and "." in cells[0]
    }
    there = {path.name for path in vendor.iterdir() if path.suffix in (".js", ".css")}
    assert set(said) == there
    for name, (package, sha256) in said.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == sha256, name
        assert (vendor / f"{package}.LICENSE").is_file()

"""How pip's configuration reaches uv."""

from __future__ import annotations

from pathlib import Path

from infra.install import uv_environment


def test_uv_environment_takes_indexes_and_certificate_from_pip() -> None:
    listed = (
        "global.cert='/etc/ca.pem'\n"
        "global.extra-index-url='\\nhttps://b.example/simple\\nhttps://c.example/simple'\n"
        "global.index-url='https://a.example/simple'\n"
        "global.timeout='60'\n"
    )
    assert uv_environment(listed, {}) == {
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_INDEX": "https://b.example/simple https://c.example/simple",
        "UV_DEFAULT_INDEX": "https://a.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_uv_environment_pip_variable_overrides_pip_file() -> None:
    listed = ":env:.index-url='https://near.example'\nglobal.index-url='https://far.example'\n"
    assert uv_environment(listed, {}) == {"UV_DEFAULT_INDEX": "https://near.example"}


def test_uv_environment_uvs_own_variable_stays() -> None:
    listed = "global.index-url='https://a.example'\n"
    assert uv_environment(listed, {"UV_DEFAULT_INDEX": "https://mine.example"}) == {}


def test_uv_environment_wheel_folder_that_is_missing_is_left_out(tmp_path: Path) -> None:
    listed = f":env:.find-links='{tmp_path} {tmp_path}/gone https://a.example/wheels'\n"
    assert uv_environment(listed, {}) == {"UV_FIND_LINKS": f"{tmp_path},https://a.example/wheels"}
    assert uv_environment(f":env:.find-links='{tmp_path}/gone'\n", {}) == {}

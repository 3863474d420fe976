"""Builds `.venv` from the pinned requirements; standard library only, and knows nothing of Freshet itself.

uv does the installing, because it needs seconds where pip needs minutes. It is made to see what pip is configured to
see (index, certificates, wheel folders); where it cannot be had, pip installs the same set.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
UV = "uv==0.13.9"
# What pip calls a setting, and what uv calls it. Each is passed on unless uv's own is set.
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
PRECEDENCE = ("global", "install", ":env:")  # a later source overrides an earlier one, as in pip


def main() -> int:
    """Install everything and return the exit status."""
    started = time.monotonic()
    try:
        install()
    except subprocess.CalledProcessError as error:
        sys.stderr.write(
            f"\nsetup failed at: {' '.join(map(str, error.cmd))}\n"
            "Its own message is above. A missing venv module: apt install python3.11-venv. "
            "No network: point pip at a mirror or a folder of wheels (pip config set global.index-url, "
            "or PIP_FIND_LINKS) and run make setup again.\n"
        )
        return 1
    sys.stdout.write(f"ready in {time.monotonic() - started:.0f} s: {PYTHON.parent}\n")
    return 0


def install() -> None:
    """Put the pinned packages, the encoders and this project (editable) into `.venv`."""
    os.chdir(ROOT)
    if not PYTHON.with_name("pip").exists():
        _run(sys.executable, "-m", "venv", ".venv")
    pip = (str(PYTHON), "-m", "pip")
    installer: tuple[str, ...] = (*pip, "install", "--disable-pip-version-check")
    environment = dict(os.environ)
    if subprocess.run([*installer, "--quiet", UV], check=False).returncode == 0:
        installer = (str(PYTHON), "-m", "uv", "pip", "install", "--python", str(PYTHON))
        configuration = subprocess.run(
            [*pip, "config", "list"], check=True, capture_output=True, text=True
        )
        environment |= uv_environment(configuration.stdout, environment)
    # The lists are closed under dependency, so there is nothing to resolve.
    pinned = ("-r", "constraints.txt", "-r", "infra/encoders.lock")
    _run(*installer, "--no-deps", *pinned, environment=environment)
    project = ("--no-build-isolation", "--editable", ".")
    _run(*installer, "--no-deps", *project, environment=environment)


def uv_environment(pip_configuration: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make uv use what `pip config list` printed.

    Wheel folders that do not exist are left out: pip passes over them, uv would stop.
    """
    settings: dict[str, tuple[int, str]] = {}
    for line in pip_configuration.splitlines():
        name, separator, literal = line.partition("=")
        source, _, key = name.rpartition(".")
        if not separator or source not in PRECEDENCE or key not in UV_NAMES:
            continue
        rank = PRECEDENCE.index(source)
        if rank >= settings.get(key, (0, ""))[0]:
            settings[key] = rank, str(ast.literal_eval(literal))
    variables: dict[str, str] = {}
    for key, (_, value) in settings.items():
        words = value.split()
        if key == "find-links":
            words = [word for word in words if "://" in word or Path(word).is_dir()]
        if words and UV_NAMES[key] not in environ:
            variables[UV_NAMES[key]] = ("," if key == "find-links" else " ").join(words)
    if (
        "UV_INDEX" in variables
    ):  # pip takes the best match of all indexes, uv by itself of the first
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return variables


def _run(*command: str, environment: Mapping[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    raise SystemExit(main())

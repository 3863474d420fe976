"""The operators' page at /dashboard, as the files of its folder; knows nothing of what it shows.

The page and its scripts are public, as they hold no figure and no title. All that is shown is asked for under /v1, with
the key where there is one, so nobody sees more than they could ask for themselves. It needs nothing from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = Path(__file__).parent / "dashboard"
# Titles are strangers' words: even one that got in as markup could load, run and send nothing.
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cache-Control": "no-cache",  # asked again each time, and sent again only when it has changed
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageFiles(StaticFiles):
    """The scripts and styles of the page; nothing outside the folder."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file with the page's headers."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Have an app answer /dashboard and the files behind it, without any key."""

    @app.get("/dashboard", include_in_schema=False)
    async def dashboard() -> FileResponse:
        """Return the page, which asks for its figures itself."""
        return FileResponse(FILES / "index.html", headers=HEADERS)

    app.mount("/dashboard/files", PageFiles(directory=FILES))

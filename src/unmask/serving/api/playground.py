"""The files of the playground, the page at `/`: plain HTML, CSS and ES modules, from nowhere else."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

FOLDER = str(files("unmask.serving").joinpath("playground"))
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked about: an upgrade must not meet modules of the last version
}


class Files(StaticFiles):
    """Static files with the headers of the page."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update(HEADERS)
        return response


def routes() -> list[BaseRoute]:
    """`/` and the files beside it."""
    made = Files(directory=FOLDER)

    async def index(request: Any) -> Response:
        return await made.get_response("index.html", request.scope)

    return [Route("/", index), Mount("/playground", made)]

"""The files of the playground, the page at `/`: plain HTML, CSS and ES modules, read once, from nowhere else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

BASE = "/playground/"
INDEX = "index.html"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
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


@dataclass(frozen=True)
class Asset:
    """A file, its media type and the tag that changes with its bytes."""

    data: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """All files by name."""
    out = {}
    for file in files("unmask.serving").joinpath("playground").iterdir():
        media_type = TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            data = file.read_bytes()
            out[file.name] = Asset(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return out


def holds(path: str) -> bool:
    """Whether a path is the page or one of its files; these hold no secrets and are open to everybody."""
    return path == "/" or (path.startswith(BASE) and path[len(BASE) :] in assets())


def router() -> APIRouter:
    """`/` and the files beside it."""
    out = APIRouter()

    def answer(request: Request, name: str) -> Response:
        asset = assets().get(name)
        if asset is None:
            raise HTTPException(404)
        headers = {**HEADERS, "ETag": asset.etag}
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if known & {asset.etag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(asset.data, media_type=asset.media_type, headers=headers)

    @out.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer(request, INDEX)

    @out.api_route(BASE + "{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        return answer(request, name)

    return out

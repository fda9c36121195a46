"""The pages for people: `/`, where they work, `/about`, and `/docs`, the OpenAPI document in Swagger UI.

Every byte of them comes from here. They need no key and hold nothing of anybody's: scripts ask the API, with the
session of the browser. Swagger UI's own files lie in the package fastapi-offline.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from app.errors import NotFound
from app.http.conditional import matches

router = APIRouter(include_in_schema=False)

FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "start.js": "text/javascript",
}
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
READ = ["GET", "HEAD"]


@router.api_route("/", methods=READ)
def index(request: Request) -> Response:
    """The page where people work. Its scripts and styles are ours; it may call only this service."""
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    policy += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    return _file(request, "index.html", {"Content-Security-Policy": policy, "X-Frame-Options": "DENY"})


@router.api_route("/ui/{path:path}", methods=READ)
def ui_file(request: Request, path: str) -> Response:
    """A file of the page above."""
    return _file(request, "" if path == "index.html" else path, {})


@router.api_route("/about", methods=READ)
def about() -> Response:
    """A description of the service, and links."""
    headers = {**HEADERS, "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}
    return HTMLResponse(_rendered("about.html"), headers=headers)


@router.api_route("/docs", methods=READ)
def docs() -> Response:
    """Swagger UI. It may run its own script and call this service only."""
    # Swagger UI sets styles of elements, and draws its icons from data: URLs.
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'"
    )
    return HTMLResponse(_rendered("docs.html"), headers={**HEADERS, "Content-Security-Policy": policy})


@router.api_route("/docs/{name}", methods=READ)
def docs_file(name: str) -> Response:
    """A file of the page above."""
    if name not in FILES:
        raise NotFound("There is no such file; the page is /docs.")
    folder = Path(__file__).parent / "templates" if name == "start.js" else _swagger_ui()
    return FileResponse(folder / name, headers=HEADERS, media_type=FILES[name])


@router.api_route("/openapi.json", methods=READ)
def openapi(request: Request) -> Response:
    """The OpenAPI document; behind a proxy that serves us below a path, with that path."""
    document: dict[str, Any] = request.app.openapi()
    if path := request.scope.get("root_path", "").rstrip("/"):
        document = {**document, "servers": [{"url": path}]}
    return JSONResponse(document)


def _file(request: Request, path: str, headers: dict[str, str]) -> Response:
    """From memory, with an ETag: a browser asks each time, and gets new scripts with a new version."""
    found = _ui().get(path)
    if found is None:
        raise NotFound("There is no such file; the page is /.")
    content, kind, etag = found
    headers = {**HEADERS, **headers, "Cache-Control": "no-cache", "ETag": etag}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


@cache
def _ui() -> dict[str, tuple[bytes, str, str]]:
    """Path -> (bytes, media type, ETag)."""
    folder = Path(__file__).parent / "ui"
    found = {}
    for file in folder.rglob("*"):
        if file.suffix in KINDS:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[file.relative_to(folder).as_posix()] = (content, KINDS[file.suffix], etag)
    return found


@cache
def _rendered(name: str) -> str:
    loader = ChoiceLoader([PackageLoader("app.pages"), PackageLoader("workers.engine.reporting", "templates")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(name).render()


@cache
def _swagger_ui() -> Path:
    found = find_spec("fastapi_offline")
    assert found is not None  # a dependency of ours
    assert found.origin is not None
    return Path(found.origin).parent / "static"

"""The pages for people: `/`, and `/docs`, the OpenAPI document in Swagger UI. Every byte of them comes from here.

They need no key and hold nothing of anybody's. Swagger UI's own files lie in the package fastapi-offline.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from app.errors import NotFound

router = APIRouter(include_in_schema=False)

FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "start.js": "text/javascript",
}
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
READ = ["GET", "HEAD"]


@router.api_route("/", methods=READ)
def index() -> Response:
    """The start page: a description of the service, and links."""
    headers = {**HEADERS, "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}
    return HTMLResponse(_rendered("index.html"), headers=headers)


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

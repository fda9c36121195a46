"""Whether answers are what the OpenAPI document says: a hook for the clients of the tests."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import httpx2
import jsonschema_rs

from app.main import create_app
from app.settings import Settings
from tests.helpers.cluster import ROOT

ANYWHERE = (413,)
"""Answers given before any route is called."""
PROBLEM = {"$ref": "#/components/schemas/Problem"}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document. It takes half a second to write, and is the same whatever the settings."""
    return create_app(Settings(home=ROOT / ".espalier", log_level="error")).openapi()


@cache
def _paths() -> dict[re.Pattern[str], dict[str, Any]]:
    return {
        re.compile(re.sub(r"\{\w+\}", "([^/]+)", path.replace("{path}", "(.+)"))): p
        for path, p in document()["paths"].items()
    }


@cache
def _validator(reference: str) -> Any:
    return jsonschema_rs.validator_for({"$ref": reference, "components": document()["components"]})


def conforming(response: httpx2.Response) -> None:
    """Fails at an answer with an undeclared status, media type or shape."""
    request = response.request
    path = request.url.path
    operations = next((found for pattern, found in _paths().items() if pattern.fullmatch(path)), {})
    operation = operations.get(request.method.lower())
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    if operation is None:
        return
    what = f"{request.method} {path}: {response.status_code} {kind}"
    declared = operation["responses"].get(str(response.status_code))
    assert declared is not None or response.status_code in ANYWHERE, f"{what} is not declared"
    content = (declared or {}).get("content", {})
    if "application/octet-stream" in content:  # a file, with the type that its name says
        return
    if kind.endswith("json") and request.method != "HEAD":
        response.read()
        assert kind in content or response.status_code in ANYWHERE, f"{what} is not declared"
        schema = content.get(kind, {}).get("schema", PROBLEM)
        error = next(iter(_validator(schema["$ref"]).iter_errors(response.json())), None) if "$ref" in schema else None
        assert error is None, f"{what}: {error}"

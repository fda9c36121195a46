"""JSON answers of what one tenant may see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from app.http.conditional import PRIVATE


def private_json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, {**PRIVATE, **(headers or {})}, "application/json")

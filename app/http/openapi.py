"""The OpenAPI document: FastAPI's, with the problem schema that every error refers to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.http.problems import Problem


def install(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _, problem = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
        document["components"]["schemas"].update(problem["$defs"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]

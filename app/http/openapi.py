"""The OpenAPI document: FastAPI's, with the problem schema that every error refers to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.http import generators
from app.http.problems import Problem

FRAMEWORK_422 = "HTTPValidationError"


def install(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _, problem = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas.update(problem["$defs"])
        # FastAPI declares a 422 of its own wherever there is a parameter; ours stand where one can go wrong.
        for operation in (operation for methods in document["paths"].values() for operation in methods.values()):
            if FRAMEWORK_422 in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
        for name in (FRAMEWORK_422, "ValidationError"):
            schemas.pop(name, None)
        generators.rewrite(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]

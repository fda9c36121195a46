"""A short way to an endpoint that is asked often: FastAPI's own costs 1.3 ms a request, more than most answers.

The endpoint, its parameters and its place in OpenAPI are declared as everywhere, and FastAPI's functions read them,
with the same errors. Left out is what no endpoint here uses: exit stacks, generators, background tasks, overrides. A
query is read once for each text.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_body_to_args, request_params_to_args
from fastapi.exceptions import RequestValidationError
from pydantic_core import PydanticUndefined
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

Values = dict[str, Any]
Errors = list[Any]
Reader = Callable[[Request], Awaitable[tuple[Values, Errors]]]


def handler(dependant: Dependant) -> Callable[[Request], Awaitable[Response]]:
    """A function that reads a request, calls the endpoint and returns its Response. The request holds the parsed JSON
    body."""
    read, endpoint = _reader(dependant), dependant.call
    assert endpoint is not None
    assert not inspect.iscoroutinefunction(endpoint)

    async def handle(request: Request) -> Response:
        values, errors = await read(request)
        if dependant.body_params:
            body = getattr(request, "_json", PydanticUndefined)
            found, wrong = await request_body_to_args(dependant.body_params, body, embed_body_fields=False)
            values |= found
            errors = [*errors, *wrong]
        if errors:
            raise RequestValidationError(errors)
        response: Response = await run_in_threadpool(endpoint, **values)
        return response

    return handle


def _reader(dependant: Dependant) -> Reader:
    """A function that reads the dependencies, query and headers that `dependant` declares. It has no path
    parameters."""
    assert not dependant.path_params
    assert not dependant.cookie_params
    takes_request = [
        name for name in (dependant.request_param_name, dependant.http_connection_param_name) if name is not None
    ]
    inner = [(each.name, _asynchronous(each), _reader(each)) for each in dependant.dependencies]

    @lru_cache(maxsize=256)
    def query(text: bytes) -> tuple[Values, Errors]:
        return request_params_to_args(dependant.query_params, QueryParams(text))

    async def read(request: Request) -> tuple[Values, Errors]:
        values: Values = {}
        errors: Errors = []
        for name, call, read_inner in inner:
            arguments, wrong = await read_inner(request)
            if wrong:
                errors += wrong
            else:
                values[str(name)] = await call(**arguments)
        if dependant.query_params:
            found, wrong = query(request.scope["query_string"])
            values |= found
            errors += wrong
        if dependant.header_params:
            found, wrong = request_params_to_args(dependant.header_params, request.headers)
            values |= found
            errors += wrong
        values |= dict.fromkeys(takes_request, request)
        return values, errors

    return read


def _asynchronous(dependant: Dependant) -> Callable[..., Awaitable[Any]]:
    call = dependant.call
    assert call is not None
    assert inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
    return call

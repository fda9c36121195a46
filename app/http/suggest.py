"""Suggestions: the known fields of a request, and the name closest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache, lru_cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

CLOSE = 0.6
"""Of difflib's ratio."""
SHORT = 4
"""Shorter names are all close to one another: `gpu` to `cpu`."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """` (did you mean `wanda`?)`, or nothing where no known name is close."""
    by_lower_case = {each.lower().replace("-", "_"): each for each in known}
    asked = str(name)[:100].lower().replace("-", "_")
    close = difflib.get_close_matches(asked, by_lower_case, n=1, cutoff=CLOSE if len(asked) >= SHORT else 1)
    return f" (did you mean `{by_lower_case[close[0]]}`?)" if close else ""


@lru_cache(maxsize=1024)
def field_names(kind: Any, path: tuple[str | int, ...]) -> tuple[str, ...]:
    """The fields of the object at `path` of a model, in their order; empty where none is known there.

    `path` is a place as pydantic names it: field names and indices, and the tag of each union's member it tried.
    """
    models = _models(kind)
    for part in path:
        tagged = [model for model in models if part in _tags(model)]
        if len(models) > 1 and tagged:
            models = tagged
        elif not isinstance(part, int):
            fields = [field for model in models if (field := model.__pydantic_fields__.get(str(part)))]
            models = [model for field in fields for model in _models(field.annotation)]
    return tuple(dict.fromkeys(f.alias or name for model in models for name, f in model.__pydantic_fields__.items()))


@cache
def homes(kind: Any) -> dict[str, list[str]]:
    """Name of a field -> the fields of a model whose objects have one of that name."""
    found: dict[str, list[str]] = {}
    for model in _models(kind):
        for outer, field in model.__pydantic_fields__.items():
            for name in dict.fromkeys(
                name for inner in _models(field.annotation) for name in inner.__pydantic_fields__
            ):
                found.setdefault(name, []).append(field.alias or outer)
    return found


def _models(kind: Any) -> list[type[BaseModel]]:
    """The models that a value of this type may be or hold."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if get_origin(kind) is Annotated:
        return _models(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType, list, tuple):
        return [model for inner in get_args(kind) for model in _models(inner)]
    return []


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    fields = model.__pydantic_fields__
    tag = fields.get("method") or fields.get("to")
    return get_args(tag.annotation) if tag else ()

"""The fields of an object as rows of a table, from its JSON schema: for the command line and docs/."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

REQUIRED = "required"
BELOW = "as below"
"""Of an object whose fields all have defaults."""
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


@dataclass(frozen=True)
class Parameter:
    name: str
    """With dots for fields of nested objects: `distill.weight`."""
    type: str
    default: str
    """JSON, `required`, or `as below`."""
    range: str
    """`≥ 0, < 1`, the allowed values, or empty."""
    description: str


def parameters(schema: Mapping[str, Any]) -> list[Parameter]:
    """The fields of an object, and after each that is an object itself the fields of that. `method` is left out."""
    return list(_rows(schema, schema.get("$defs", {}), ""))


def _rows(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[Parameter]:
    for name, field in schema.get("properties", {}).items():
        if name == "method":
            continue
        kinds = [_resolved(kind, definitions) for kind in field.get("anyOf", [field])]
        given = [kind for kind in kinds if kind.get("type") != "null"]
        missing = REQUIRED if name in schema.get("required", []) else BELOW
        yield Parameter(
            name=f"{prefix}{name}",
            type=" or ".join(dict.fromkeys(_type(kind) for kind in kinds)),
            default=json.dumps(field["default"], ensure_ascii=False) if "default" in field else missing,
            range="; ".join(filter(None, (_range(kind) for kind in given))),
            description=field.get("description", "") or " ".join(kind.get("description", "") for kind in given),
        )
        for kind in given:
            nested = _resolved(kind["items"], definitions) if "items" in kind else kind
            yield from _rows(nested, definitions, f"{prefix}{name}.")


def _resolved(kind: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in kind:
        return kind
    found: Mapping[str, Any] = definitions[kind["$ref"].rpartition("/")[2]]
    return found


def _type(kind: Mapping[str, Any]) -> str:
    if "oneOf" in kind:
        return "a method"
    if kind.get("type") == "array":
        return f"list of {_type(kind['items'])}" if "items" in kind else "list"
    if "$ref" in kind:
        return "object"
    return str(kind.get("type", "any"))


def _range(kind: Mapping[str, Any]) -> str:
    values = kind.get("enum") or kind.get("items", {}).get("enum")
    if values is None and "const" in kind:
        values = [kind["const"]]
    if values is not None:
        return ", ".join(f"`{value}`" for value in values)
    limits = [f"{sign} {_number(kind[key])}" for key, sign in BOUNDS if key in kind]
    counts = [f"{word} {kind[key]}" for key, word in (("minItems", "at least"), ("maxItems", "at most")) if key in kind]
    return ", ".join(limits + counts)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"

"""The OpenAPI document as generators of clients read it: what they misread is said in another way that means the same.

Checked by tests/generated, where openapi-python-client and openapi-typescript, with their defaults, make clients of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

JSON_VALUE = {
    "description": "Any JSON.",
    "anyOf": [
        {"type": "string"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "array", "items": {}},
        {"type": "object", "additionalProperties": True},
        {"type": "null"},
    ],
}
"""Not recursive: neither generator can write a type that refers to itself."""
IS, LIKE = "x-is", "x-like"
"""Of an object that is passed on as it is: the schema that it keeps to, or mostly keeps to."""


def rewrite(document: dict[str, Any]) -> None:
    """Changes the document in place; a second time changes nothing."""
    schemas = document["components"]["schemas"]
    schemas["JsonValue"] = JSON_VALUE
    for node in _objects(document):
        if "patternProperties" in node:
            _say_what_keys_hold(node)
        if IS in node or LIKE in node:
            _say_what_it_is(node)
        if any(str(value).startswith("-") for value in node.get("enum", ())):
            node["x-enum-varnames"] = [_name(value) for value in node["enum"]]
        if "default" in node and node["default"] is None:  # what is not there, and so may be left out
            del node["default"]
    for name in _sent(document):
        for node in _objects(schemas[name]):
            if "properties" in node:
                _say_defaults_in_words(node)


def _name(order: str) -> str:
    """Of a value of `sort`; openapi-python-client has none of its own for what begins with a dash."""
    return order.removeprefix("-").upper() + ("_DESCENDING" if order.startswith("-") else "")


def _say_what_keys_hold(schema: dict[str, Any]) -> None:
    """Neither generator types the values of `patternProperties`."""
    [(pattern, values)] = schema.pop("patternProperties").items()
    schema.update(propertyNames={"pattern": pattern}, additionalProperties=values)


def _say_what_it_is(schema: dict[str, Any]) -> None:
    free = {key: schema.pop(key) for key in ("type", "additionalProperties")}
    if IS in schema:
        schema["$ref"] = f"#/components/schemas/{schema.pop(IS)}"
    else:
        schema["anyOf"] = [{"$ref": f"#/components/schemas/{schema.pop(LIKE)}"}, free]


def _say_defaults_in_words(schema: dict[str, Any]) -> None:
    """openapi-typescript makes a property with a default one that must be given, and openapi-python-client drops a
    schema in which an object has one. The property that tells methods apart must be given."""
    for name, prop in schema["properties"].items():
        if "default" not in prop:
            continue
        default = prop.pop("default")
        if "const" in prop:
            schema["required"] = [*schema.get("required", []), name]
        else:
            words = f"Default: `{json.dumps(default, ensure_ascii=False)}`."
            prop["description"] = " ".join(filter(None, (prop.get("description"), words)))


def _sent(document: dict[str, Any]) -> set[str]:
    """Names of the schemas that bodies of requests are made of."""
    operations = (operation for methods in document["paths"].values() for operation in methods.values())
    found: set[str] = set()
    left = [operation["requestBody"] for operation in operations if "requestBody" in operation]
    while left:
        names = {node["$ref"].rpartition("/")[2] for node in _objects(left.pop()) if "$ref" in node} - found
        found |= names
        left.extend(document["components"]["schemas"][name] for name in names)
    return found


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from _objects(inner)

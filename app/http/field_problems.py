"""The error of one field, as an entry of a problem's `errors`: where it is, what is wrong, what would be valid.

Without FastAPI: workers and commands that read specs say what is wrong in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from app.http.suggest import did_you_mean, field_names, homes
from app.publications.contract import Params
from app.publications.registry import publishers
from workers.engine.contracts.params import STAGES
from workers.engine.method_packages import VARIABLE, refused
from workers.engine.registry import methods, untagged
from workers.engine.spec import CompressionSpec

MOST_ERRORS = 100
"""Entries of `errors`; there may be as many mistakes as a body has fields."""


def field_error(pointer: str, code: str, detail: str, allowed: Sequence[str] | None = None) -> dict[str, Any]:
    """One entry of `errors`."""
    entry: dict[str, Any] = {"pointer": pointer, "code": code, "detail": detail}
    return entry | {"allowed": list(allowed)} if allowed else entry


def field_problem(error: Mapping[str, Any], body: Any = None) -> dict[str, Any]:
    """One entry of `errors`, of an error of pydantic's whose place begins with `body`, `query` or `header`.

    `body` is the model that the body was read as; below `/spec` it is always the spec's.
    """
    code, context = error["type"], error.get("ctx", {})
    pointer = _pointer(error["loc"], body)
    match code:
        case "missing":
            return field_error(pointer, code, "this field is required")
        case "extra_forbidden":
            known, elsewhere = _fields_there(error["loc"], body)
            close = did_you_mean(error["loc"][-1], known)
            if elsewhere and not close:
                close = f" (it is one of {' and of '.join(f'`{home}`' for home in elsewhere)})"
            advice = f"here can be {', '.join(known)}" if known else "check the spelling, or leave it out"
            return field_error(pointer, code, f"there is no such field{close}: {advice}", known)
        case "model_attributes_type" | "model_type" | "dict_type":
            return field_error(pointer, code, f"this must be a JSON object{_naming_a_method(error)}")
        case "union_tag_invalid":  # pydantic's own message repeats the tag
            allowed = re.findall(r"'([^']+)'", context["expected_tags"])
            if one := _refused_method(error["loc"], str(context["tag"])):
                return field_error(f"{pointer}/method", "method_not_allowed_here", one, allowed)
            tag = context["discriminator"].strip("'")
            close = did_you_mean(context["tag"], allowed)
            return field_error(f"{pointer}/{tag}", code, _choice(tag, close, allowed), allowed)
        case "union_tag_not_found":
            tag = context["discriminator"].strip("'")
            what = "the method" if tag == "method" else "the kind of place"
            return field_error(f"{pointer}/{tag}", code, f"this field is required: it names {what}")
        case "literal_error":
            allowed = re.findall(r"'([^']+)'", context["expected"])
            close = did_you_mean(error["input"], allowed) if isinstance(error.get("input"), str) else ""
            return field_error(pointer, code, _choice("value", close, allowed), allowed)
    return field_error(pointer, code, error["msg"].removesuffix("."))


def _choice(what: str, close: str, allowed: Sequence[str]) -> str:
    choose = f"choose one of {', '.join(allowed)}"
    return f"there is no such {what}{close}: {choose}" if close else choose


def _refused_method(loc: Sequence[str | int], name: str) -> str:
    """Advice, where a package that the operator has not allowed offers the method."""
    one = refused(str(loc[2]), name) if tuple(loc[:2]) == ("body", "spec") and len(loc) > 2 else None
    if one is None:
        return ""
    return (
        f"{one.origin} offers this method, and this service does not use that package's: its operator may allow it "
        f"by {VARIABLE}={one.package}, for the API and the workers"
    )


def _naming_a_method(error: Mapping[str, Any]) -> str:
    """`, e.g. {"method": "owl"}` of a stage of the spec."""
    loc = error["loc"]
    if tuple(loc[:2]) != ("body", "spec") or len(loc) < 3 or loc[2] not in STAGES:
        return ""
    names = [method.name for method in methods(loc[2])]
    name = error.get("input") if error.get("input") in names else names[0]
    return f', e.g. {{"method": "{name}"}}'


def _fields_there(loc: Sequence[str | int], body: Any) -> tuple[Sequence[str], Sequence[str]]:
    """The fields that there can be beside the one at this place, and the objects that have a field of its name."""
    root, path = (CompressionSpec, loc[2:]) if tuple(loc[:2]) == ("body", "spec") and len(loc) > 2 else (body, loc[1:])
    if loc[0] != "body" or root is None:
        return [], []
    elsewhere = homes(root).get(str(path[-1]), [])
    return field_names(root, tuple(path[:-1])), [home for home in elsewhere if home != path[0]]


def _pointer(loc: Sequence[str | int], body: Any) -> str:
    """JSON pointer of a pydantic location, `?name` of a query parameter, `#name` of a header.

    Inside a union pydantic names the member it tried, which is no part of the document.
    """
    where, *path = loc
    if where != "body":
        return f"{'?' if where == 'query' else '#'}{'/'.join(map(str, path))}"
    if path and path[-1] == "[key]":  # of a dict: the key itself is what is wrong
        path.pop()
    if path and path[0] == "spec":
        path[1:] = untagged(path[1:])
    if path and path[0] == "publish":
        path[2:] = _untagged_place(path[2:])
    elif _is_place(body):
        path = _untagged_place(path)
    return json_pointer(path)


def _is_place(body: Any) -> bool:
    """Whether a body is a publisher's parameters."""
    members = get_args(body) or (body,)
    return all(isinstance(each, type) and issubclass(each, Params) for each in members)


def _untagged_place(path: list[str | int]) -> list[str | int]:
    return path[1:] if path and path[0] in publishers() else path


def json_pointer(path: Sequence[str | int]) -> str:
    """RFC 6901."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)

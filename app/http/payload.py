"""A request's JSON body: read strictly, and bounded before anything is made of it.

Python's parser takes what JSON does not have (NaN, half characters, numbers of any length), and a validator that tells
every mistake takes as long as there are mistakes. What passes here can be stored by both databases, and is small.
"""

from __future__ import annotations

import email.message
import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from app.errors import InvalidRequest, MalformedRequest, UnsupportedMediaType
from app.http.field_problems import field_error, json_pointer

VALUES = 20_000
"""Most values of a body, objects and lists included."""
MEMBERS = 100
"""Most members of an object."""
NAME_CHARACTERS = 1000
DEPTH = 32
DIGITS = 20
"""Of 2**64."""
NUMBER = "a number must be finite and fit 64 bits"


def parse(body: bytes) -> Any:
    """The document. Raises MalformedRequest, or InvalidRequest with the place of what no request may hold."""
    try:
        document = json.loads(body.decode(), parse_int=_integer)
    except UnicodeDecodeError:
        raise MalformedRequest("The body is not UTF-8: send UTF-8 JSON.", code="malformed_body") from None
    except RecursionError:
        raise MalformedRequest(f"The body nests deeper than {DEPTH} levels.", code="malformed_body") from None
    except json.JSONDecodeError as error:
        raise MalformedRequest(f"{error.msg} at character {error.pos}.", code="malformed_json") from None
    _check(document)
    return document


def check_media_type(content_type: str | None) -> None:
    """Raises UnsupportedMediaType unless it is JSON in UTF-8."""
    message = email.message.Message()
    message["content-type"] = content_type or ""
    subtype, charset = message.get_content_subtype(), str(message.get_param("charset", "utf-8"))
    is_json = message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
    if not content_type or not is_json or charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType("Send the body as UTF-8 with `Content-Type: application/json`.")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= DIGITS else math.inf


def _check(document: Any) -> None:
    count = 0
    waiting: list[tuple[Any, tuple[str | int, ...]]] = [([document], ())]
    while waiting:
        node, path = waiting.pop()
        count += len(node)
        if count > VALUES:
            _refuse((), "too_many_values", f"a request has at most {VALUES} values")
        if len(path) > DEPTH:
            _refuse(path[1:3], "too_deep", f"a request nests at most {DEPTH} levels")
        if isinstance(node, dict) and len(node) > MEMBERS:
            _refuse(path[1:], "too_many_fields", f"an object has at most {MEMBERS} fields")
        for name, value in _members(node, path):
            if isinstance(value, str):
                if not _is_text(value):
                    _refuse((*path, name)[1:], "string_unicode", "text must be Unicode without the character NUL")
            elif isinstance(value, float):
                if not math.isfinite(value):
                    _refuse((*path, name)[1:], "finite_number", NUMBER)
            elif isinstance(value, dict | list):
                waiting.append((value, (*path, name)))
            elif isinstance(value, int) and not -(2**63) <= value < 2**64:
                _refuse((*path, name)[1:], "finite_number", NUMBER)


def _members(node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, Any]]:
    if isinstance(node, list):
        yield from enumerate(node)
        return
    for name, value in node.items():
        if len(name) > NAME_CHARACTERS:
            _refuse(path[1:], "name_too_long", f"a field's name has at most {NAME_CHARACTERS} characters")
        if not _is_text(name):
            _refuse(path[1:], "string_unicode", "the names of fields must be Unicode without the character NUL")
        yield name, value


def _is_text(text: str) -> bool:
    """Whether both databases can store it."""
    if "\0" in text:
        return False
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _refuse(path: tuple[str | int, ...], code: str, detail: str) -> NoReturn:
    pointer = json_pointer(path)
    raise InvalidRequest(f"{pointer or 'body'}: {detail}.", errors=[field_error(pointer, code, detail)])

"""Read files of a model's folder as untrusted input. Import-light.

A folder may be a link, and the files of a snapshot in the hub's cache are links into that cache's own blobs; any other
link that leads out of the folder is not followed. JSON is read up to a size and a depth, its integers up to 63 bits.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

CONFIG_BYTES = 2**22
INDEX_BYTES = 2**26
TOKENIZER_BYTES = 2**27
"""The largest in use are about 34 MB."""
_DEPTH = 64
_DIGITS = 18
"""Most digits of an integer: such integers fit 63 bits."""
TOKENIZER_DIGITS = 31
"""The same in a tokenizer's files: transformers writes int(1e30) as `model_max_length` where there is no limit."""
_SHOWN = 80


class BadFile(ValueError):
    """A file of a model's folder that is not read; the text names it and says why."""


def shown(text: object) -> str:
    """Untrusted text for a message: cut, on one line, without characters that databases or terminals refuse."""
    flat = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text)[: _SHOWN + 1])
    return flat if len(flat) <= _SHOWN else f"{flat[: _SHOWN - 1]}…"


def find(folder: Path, name: str) -> Path | None:
    """The regular file behind `name`, a path below `folder`, links resolved; None where there is none.

    Raises BadFile for anything else than a regular file and for a link out of the folder.
    """
    try:
        found = (folder / name).resolve(strict=True)
        mode = found.stat().st_mode
    except FileNotFoundError:
        if (folder / name).is_symlink():
            raise BadFile(f"{shown(name)} is a link to nothing") from None
        return None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL in it
        raise BadFile(f"{shown(name)} cannot be read: {shown(error)}") from error
    if not any(found.is_relative_to(allowed) for allowed in _allowed(folder)):
        raise BadFile(f"{shown(name)} is a link that leads out of the model's folder")
    if not stat.S_ISREG(mode):
        raise BadFile(f"{shown(name)} is not a regular file")
    return found


def open_file(folder: Path, name: str, limit: int | None = None) -> BinaryIO:
    """`name` open for reading, unbuffered. BadFile also where it is missing or has more than `limit` bytes."""
    path = find(folder, name)
    if path is None:
        raise BadFile(f"{shown(name)} is missing")
    try:
        # O_NOFOLLOW, O_NONBLOCK: a link or pipe that has replaced the resolved file is neither opened nor waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadFile(f"{shown(name)} cannot be read: {error.strerror}") from error
    file = os.fdopen(descriptor, "rb", buffering=0)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (limit is None or status.st_size <= limit):
        return file
    file.close()
    raise BadFile(f"{shown(name)} has {status.st_size:,} bytes, where at most {limit:,} are read")


def read_bytes(folder: Path, name: str, limit: int) -> bytes:
    """The content of `name`. Raises BadFile, also where it has more than `limit` bytes."""
    with open_file(folder, name, limit) as file:
        content = b""
        while chunk := file.read(limit + 1 - len(content)):
            content += chunk
            if len(content) > limit:
                raise BadFile(f"{shown(name)} grows while it is read")
        return content


def read_json(folder: Path, name: str, limit: int = CONFIG_BYTES, digits: int = _DIGITS) -> dict[str, Any]:
    """The JSON object in `name`. Raises BadFile."""
    return parse_json(read_bytes(folder, name, limit), name, digits)


def parse_json(content: bytes, name: str, digits: int = _DIGITS) -> dict[str, Any]:
    """The JSON object in `content`, its integers of at most so many digits. Raises BadFile, naming the file.

    NaN and Infinity are accepted, as files of some state-space models hold them; callers check numbers that they use.
    """
    try:
        value = json.loads(content.decode("utf-8"), parse_int=partial(_integer, most=digits))
    except RecursionError:
        raise BadFile(f"{name} is nested more than {_DEPTH} deep") from None
    except ValueError as error:
        raise BadFile(f"{name} is not JSON: {shown(error)}") from error
    if not isinstance(value, dict):
        raise BadFile(f"{name} is not a JSON object")
    if _deep(value):
        raise BadFile(f"{name} is nested more than {_DEPTH} deep")
    if b"\\u" in content:  # only an escape can stand for what UTF-8 cannot hold
        for part in _parts(value):
            if isinstance(part, str) and not _storable(part):
                raise BadFile(f"{name} holds text that is not Unicode: {shown(part)!r}")
    return value


def infinite(value: Any) -> bool:
    """Whether a parsed JSON value holds a number that is not finite."""
    return any(isinstance(part, float) and not math.isfinite(part) for part in _parts(value))


def are_token_ids(entry: Any) -> bool:
    """Whether a parsed JSON value names special tokens as configs do: an id, a list of ids, or null."""
    return all(type(part) is int for part in entry) if isinstance(entry, list) else entry is None or type(entry) is int


def _integer(digits: str, *, most: int) -> int:
    if len(digits.lstrip("-")) > most:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _storable(text: str) -> bool:
    """Whether text has no lone surrogate and no NUL, which UTF-8, databases or file systems refuse."""
    return (text.isascii() and "\x00" not in text) or not any(c == "\x00" or "\ud800" <= c <= "\udfff" for c in text)


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEPTH):
        inner = (entry for part in level for entry in (part.values() if isinstance(part, dict) else part))
        level = [entry for entry in inner if isinstance(entry, dict | list)]
    return bool(level)


def _parts(value: Any) -> Iterator[Any]:
    """Every value and key in a parsed JSON value."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, dict):
            waiting += [entry for pair in part.items() for entry in pair]
        elif isinstance(part, list):
            waiting += part


def _allowed(folder: Path) -> list[Path]:
    """Folders that files of a model may lie in: its own and, for a snapshot in the hub's cache, the cache's blobs."""
    real = folder.resolve()
    repository = real.parent.parent
    if real.parent.name == "snapshots" and repository.name.startswith("models--"):
        return [real, (repository / "blobs").resolve()]
    return [real]

"""A backup: a folder or a prefix of object storage, in which `backup.json` is written last.

backup.json             what it is of, and what is in it
database/{table}.jsonl  the rows
files.jsonl             key, bytes and sha256 of every file
store/{key}             the files of the artifact store
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from app.storage import ArtifactStore

CONTENTS = "backup.json"
FILES = "files.jsonl"


TableName = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,63}$")]
"""Also of a file, so it is no path."""


class Digested(BaseModel):
    """Of a file of lines."""

    model_config = ConfigDict(frozen=True)

    lines: int
    bytes: int
    sha256: str


class Contents(BaseModel):
    """Contents of backup.json."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    made_at: str
    version: str
    """Of espalier."""
    deployment: str | None
    revision: str
    """Of the schema."""
    tables: dict[TableName, Digested]
    files: Digested
    stored_bytes: int
    deleted_jobs: list[str]
    """Jobs of the rows that were deleted while their files were copied: the restore deletes them too."""
    deleted_files: list[tuple[str, str]]
    """(job, path) of files that were."""
    missing: list[str]
    """Keys of results that the store had lost before."""
    damaged: list[str]
    """Keys of results whose bytes are not those that the job made."""
    signing_keys: list[str] = []
    """Ids of the keys that signed manifests when it was made; none where an earlier version made it. They are not in
    it."""


class Stored(NamedTuple):
    """A file as files.jsonl has it."""

    key: str
    bytes: int
    sha256: str


class BadBackup(Exception):
    """It is not complete, not whole, or not for this version; the message says which."""


def table_key(name: str) -> str:
    return f"database/{name}.jsonl"


def file_key(key: str) -> str:
    return f"store/{key}"


def place(target: str) -> ArtifactStore:
    """The store at a URL or a path."""
    return ArtifactStore(target if "://" in target else f"file://{Path(target).absolute()}")


def is_within(one: ArtifactStore, other: ArtifactStore) -> bool:
    """Whether all of a store is part of another."""
    inner, outer = (_address(store.url) for store in (one, other))
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")


def _address(url: str) -> str:
    path = url.removeprefix("file://")
    return url.rstrip("/") if path == url else f"file://{Path(path).resolve()}"


def contents_of(backup: ArtifactStore) -> Contents:
    """Raises BadBackup."""
    try:
        return Contents.model_validate_json(backup.read(CONTENTS))
    except FileNotFoundError:
        raise BadBackup(f"{backup.url} holds no complete backup: it has no {CONTENTS}") from None
    except ValidationError as error:
        raise BadBackup(f"{CONTENTS} of {backup.url} cannot be read by this version: {error}") from None


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, with their ends."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def stored_of(line: bytes) -> Stored:
    """The file that a line of files.jsonl names. Raises BadBackup."""
    try:
        found = Stored(**orjson.loads(line))
    except (ValueError, TypeError):
        raise BadBackup(f"{FILES} has a line that names no file: {line[:200]!r}") from None
    if not isinstance(found.key, str) or {"", ".", ".."} & set(found.key.split("/")):
        raise BadBackup(f"{FILES} names {found.key!r:.200}, which lies outside of a store")
    return found

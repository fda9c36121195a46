"""Bytes from one store to another, measured on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from app.backup.contents import BadBackup, Digested, Stored
from app.storage import ArtifactStore


def write(store: ArtifactStore, key: str, written: Iterable[bytes]) -> Digested:
    """Store lines under a key."""
    sha256, count, size = hashlib.sha256(), 0, 0

    def watched() -> Iterator[bytes]:
        nonlocal count, size
        for line in written:
            sha256.update(line)
            count, size = count + 1, size + len(line)
            yield line

    store.put_pieces(key, watched())
    return Digested(lines=count, bytes=size, sha256=sha256.hexdigest())


def copy(source: ArtifactStore, source_key: str, target: ArtifactStore, key: str, *, named: str) -> Stored:
    """Copy a file, which is called `named` in what is returned. Raises FileNotFoundError."""
    size = source.size(source_key)
    if size is None:
        raise FileNotFoundError(source_key)
    sha256 = hashlib.sha256()
    target.put_pieces(key, _hashed(source.open_range(source_key, 0, size), sha256))
    return Stored(named, size, sha256.hexdigest())


def is_there(store: ArtifactStore, expected: Stored) -> bool:
    """Whether a file is there with all its bytes."""
    if store.size(expected.key) != expected.bytes:
        return False
    sha256 = hashlib.sha256()
    for _ in _hashed(store.open_range(expected.key, 0, expected.bytes), sha256):
        pass
    return sha256.hexdigest() == expected.sha256


def checked(store: ArtifactStore, key: str, expected: Digested) -> Iterator[bytes]:
    """The pieces of a file. Raises BadBackup at its end if it is not what was written."""
    sha256 = hashlib.sha256()
    try:
        yield from _hashed(store.open_range(key, 0, store.size(key) or 0), sha256)
    except FileNotFoundError:
        raise BadBackup(f"{key} is missing") from None
    if sha256.hexdigest() != expected.sha256:
        raise BadBackup(f"{key} is not what was written: its sha256 is {sha256.hexdigest()}")


def _hashed(pieces: Iterable[bytes], sha256: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        sha256.update(piece)
        yield piece

"""Tokens of a text that one attempt at a job leaves to the next, in a file beside the resume points.

The text itself is read again; a piece of it that is the same as before is not tokenised again. A record says by a
digest what its piece was made of, and by another that it is whole: what differs, and all behind it, is made anew. Two
processes may add to a file (a worker thought dead, and its successor): a record is written at the end by one call, and
one that comes twice only costs the next attempt time.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING
from weakref import finalize

import numpy as np
from xxhash import xxh3_128

from workers.engine.contracts.texts import Encoded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DIGEST = 16
_HEAD = Struct(f"<{_DIGEST}s{_DIGEST}sIIII")
"""Digest of what the piece was made of, digest of all that follows, characters, documents that begin in it, tokens,
bytes of a token. Then where the documents begin, uint32, and the tokens, in as few bytes as their ids need."""


class KeptPieces:
    """The pieces of one text, in their order."""

    def __init__(self, path: Path, made_by: str) -> None:
        """`made_by`: on what tokens depend beside the text."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        finalize(self, self._file.close)
        self._made_by = made_by.encode()
        self._at = 0
        """Where the next record begins that an earlier attempt left."""
        self._found = True
        """Whether there may be one."""

    def piece(self, text: str, make: Callable[[], Encoded]) -> Encoded:
        """As `KeepsPieces`."""
        made_of = xxh3_128(self._made_by + text.encode()).digest()
        if self._found:
            if (found := self._next(made_of)) is not None:
                return found
            self._found = False
            self._file.truncate(self._at)
        made = make()
        left = memoryview(_record(made_of, made))
        while left:
            left = left[self._file.write(left) :]
        return made

    def _next(self, made_of: bytes) -> Encoded | None:
        """The next record, or None where it is of something else, or not whole."""
        file = self._file.fileno()
        head = os.pread(file, _HEAD.size, self._at)
        if len(head) < _HEAD.size or not head.startswith(made_of):
            return None
        _, digest, characters, starts, tokens, width = _HEAD.unpack(head)
        size = 4 * starts + width * tokens
        body = os.pread(file, size, self._at + _HEAD.size) if size < os.fstat(file).st_size else b""
        if digest != xxh3_128(head[2 * _DIGEST :] + body).digest():
            return None
        self._at += _HEAD.size + size
        ids_T = np.frombuffer(body, f"<u{width}", offset=4 * starts).astype(np.int64)
        return Encoded(ids_T, characters, np.frombuffer(body, "<u4", starts).tolist())


def _record(made_of: bytes, made: Encoded) -> bytes:
    width = np.min_scalar_type(made.ids_T.max(initial=0)).itemsize
    body = np.array(made.starts, "<u4").tobytes() + made.ids_T.astype(f"<u{width}").tobytes()
    head = _HEAD.pack(made_of, b"", made.characters, len(made.starts), len(made.ids_T), width)
    return made_of + xxh3_128(head[2 * _DIGEST :] + body).digest() + head[2 * _DIGEST :] + body

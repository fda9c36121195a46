"""Files in the artifact store as file objects, for libraries that upload from one. Nothing is copied to a disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

from app.publications.reading import damaged
from app.storage import ArtifactStore

BUFFER_BYTES = 2**20


class StoredFile(io.RawIOBase):
    """An object of the store, read in a stream from wherever it is sought to."""

    def __init__(self, store: ArtifactStore, key: str, path: str, size: int, check: Callable[[], None]) -> None:
        """`path`: in the result. `check` is called before each read: its exception ends the upload. Reading raises
        PublishFailure where the store has lost the file, as a missing file may be the place's fault elsewhere."""
        self._store, self._key, self._path, self._size, self._check = store, key, path, size, check
        self._at = 0
        self._pieces: Iterator[bytes] | None = None
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        at = max(start + offset, 0)
        if at != self._at:
            self._at, self._pieces, self._piece = at, None, memoryview(b"")
        return self._at

    def readinto(self, buffer: object) -> int:
        self._check()
        into = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if self._at >= self._size or not len(into):
            return 0
        if self._pieces is None:
            try:
                self._pieces = self._store.open_range(self._key, self._at, self._size)
            except FileNotFoundError as error:
                raise damaged(self._path) from error
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        count = min(len(into), len(self._piece))
        into[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        self._at += count
        return count


def opened(store: ArtifactStore, key: str, path: str, size: int, check: Callable[[], None]) -> io.BufferedReader:
    return io.BufferedReader(StoredFile(store, key, path, size, check), BUFFER_BYTES)

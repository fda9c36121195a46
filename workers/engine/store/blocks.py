"""Finished blocks in a few files: those that were finished between two resume points make one.

    blocks-00003-00007.<digest>.bin     blocks 3 to 7, one safetensors file's content after another

A block is written at once and is durable with the next point, so that there is one fsync a file and none a block. Files
may overlap where blocks were done twice: they hold the same.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from workers.engine.files.atomic_files import temporary_for
from workers.engine.files.safetensors_bytes import Slice, read_headers
from workers.engine.files.tensors import write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from workers.engine.store.sealed import Sealed

_NAME = re.compile(r"(blocks-(\d{5})-(\d{5}))\.[0-9a-f]{32}\.bin")


@dataclass
class _Open:
    """A file that blocks are added to."""

    path: Path
    file: BinaryIO
    first: int
    last: int


class Blocks:
    """The finished blocks in a folder."""

    def __init__(self, folder: Path, sealed: Sealed) -> None:
        self._folder, self._sealed = folder, sealed
        self._lock = threading.Lock()  # one thread adds, another seals
        self._open: _Open | None = None
        self._headers: dict[Path, list[dict[str, Slice]]] = {}

    def add(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a finished block behind the ones before it. It counts once it is sealed."""
        with self._lock:
            if self._open is None:
                path = temporary_for(self._folder / "blocks")
                self._open = _Open(path, path.open("wb", buffering=0), index, index)
            write_tensors(tensors, self._open.file)
            self._open.last = index

    def seal(self, *, named: bool) -> None:
        """Make the blocks that were added durable, all together; the file's name, too, if `named`."""
        with self._lock:
            taken, self._open = self._open, None
        if taken is not None:
            stem = f"blocks-{taken.first:05d}-{taken.last:05d}"
            taken.file.close()
            try:
                self._sealed.adopt(stem, ".bin", taken.path, durable=True, named=named)
            finally:
                taken.path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Drop the blocks that were added and not sealed."""
        with self._lock:
            taken, self._open = self._open, None
        if taken is not None:
            taken.file.close()
            taken.path.unlink(missing_ok=True)

    def count(self) -> int:
        """How many blocks, from the first on, are sealed and whole."""
        count = 0
        while (reach := max((last + 1 for _, last, _ in self._holding(count)), default=count)) > count:
            count = reach
        return count

    def find(self, index: int) -> dict[str, Slice]:
        """Where the tensors of a sealed block lie. Raises KeyError where there is no such block."""
        for first, _, path in self._holding(index):
            if path not in self._headers:
                self._headers[path] = read_headers(path)
            return self._headers[path][index - first]
        raise KeyError(f"block {index} is not finished")

    def _holding(self, index: int) -> Iterator[tuple[int, int, Path]]:
        """(first block, last block, file) of the whole files that hold a block."""
        for path in sorted(self._folder.glob("blocks-*.bin")):
            if (found := _NAME.fullmatch(path.name)) is not None and int(found[2]) <= index <= int(found[3]):
                whole = self._sealed.find(found[1], ".bin")
                if whole is not None:
                    yield int(found[2]), int(found[3]), whole

"""Token ids of a text in a file, of which memory holds what is asked for.

Read and not mapped: a mapped file counts as memory in use.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any
from weakref import finalize

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_128

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BYTES = 4
_PREFIX = "tokens-"


def forget_files(folder: Path) -> None:
    """Remove those that a process left in a folder when it was killed."""
    for path in folder.glob(f"{_PREFIX}*"):
        path.unlink()


class TokenFile:
    """Ids one after another, int32. The file goes with the object that made it; other processes of the host, to which
    that may be sent, read it meanwhile."""

    def __init__(self, folder: Path | None = None) -> None:
        """An empty file in a folder, which is made where it is missing; by default that of temporary files."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._file: Any = NamedTemporaryFile(dir=folder, prefix=_PREFIX, buffering=0)  # noqa: SIM115  # it is kept
        self._length, self._hash = 0, xxh3_128()
        finalize(self, self._file.close)

    def add(self, ids_T: NDArray[np.int64]) -> None:
        """Append ids, which are below 2**31."""
        left = memoryview(ids_T.astype("<i4").tobytes())
        self._hash.update(left)
        while left:
            left = left[self._file.write(left) :]
        self._length += len(ids_T)

    @property
    def digest(self) -> str:
        """Of all ids that were added, which this process did."""
        return str(self._hash.hexdigest())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> Tensor:
        """Successive ids, int64."""
        begin, end, _ = part.indices(self._length)
        found = np.empty(max(0, end - begin), dtype="<i4")
        left, at = found.view(np.uint8).data, begin * _BYTES
        while left:
            read = os.preadv(self._file.fileno(), [left], at)
            assert read, "the file is shorter than what was written to it"
            left, at = left[read:], at + read
        return torch.from_numpy(found).long()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._file.name, "length": self._length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._file, self._length = open(state["path"], "rb", buffering=0), state["length"]  # noqa: PTH123, SIM115
        finalize(self, self._file.close)

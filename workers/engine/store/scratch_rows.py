"""Rows of matrices in a file without a name, read a few at a time. R = rows, B = blocks, I = numbers of a row."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

_BYTES = 4


class ScratchRows:
    """Float32 numbers [R, B, I]: what is read together, a row of neighbouring blocks, lies together.

    Read and not mapped: a mapped file counts as memory in use.
    """

    def __init__(self, file: BinaryIO, blocks: int, width: int) -> None:
        self._file, self._blocks, self._width = file, blocks, width

    def put(self, block: int, rows_RI: Tensor) -> None:
        """Write the rows of one block."""
        values_RI = rows_RI.to("cpu", torch.float32).contiguous().numpy()
        for row, values_I in enumerate(values_RI):
            left, at = values_I.view(np.uint8).data, self._at(row, block)
            while left:  # a write may take fewer bytes, such as the last ones that a disk has room for
                written = os.pwrite(self._file.fileno(), left, at)
                left, at = left[written:], at + written

    def take(self, rows_N: Tensor, blocks_N: Tensor, count: int) -> Tensor:
        """These rows of `count` successive blocks from these on, [N, count, I]."""
        found_NCI = torch.empty(len(rows_N), count, self._width)
        for row, block, values_CI in zip(rows_N.tolist(), blocks_N.tolist(), found_NCI.numpy(), strict=True):
            read = os.preadv(self._file.fileno(), [values_CI.data], self._at(row, block))
            assert read == values_CI.nbytes, f"row {row} of block {block} was not written"
        return found_NCI

    def _at(self, row: int, block: int) -> int:
        return (row * self._blocks + block) * self._width * _BYTES

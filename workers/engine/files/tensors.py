"""Tensors in safetensors files: read one by one, or appended as one file after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

import torch

from workers.engine.files.safetensors_bytes import Slice, TensorFacts, fill, header

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""As safetensors headers name them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensor(piece: Slice, *, pinned: bool = False) -> Tensor:
    """A stored tensor, on the CPU, in the type it is stored in. `pinned`: in memory that a GPU can read by itself."""
    if piece.whole is None or piece.place is None:
        return _read(piece.file, piece.begin, piece.facts, pinned)
    part = piece.place.read(_read(piece.file, piece.begin, piece.whole, pinned=False))
    return part.pin_memory() if pinned else part


def overwrite(piece: Slice, tensor: Tensor) -> None:
    """Write a tensor, of the stored type and shape and on the CPU, where the old one lies."""
    if piece.whole is not None and piece.place is not None:
        whole = _read(piece.file, piece.begin, piece.whole, pinned=False)
        piece.place.write(whole, tensor)
        tensor = whole
    with piece.file.open("r+b") as file:
        file.seek(piece.begin)
        file.write(bytes_of(tensor.contiguous()))


def _read(path: Path, begin: int, facts: TensorFacts, pinned: bool) -> Tensor:
    tensor = torch.empty(facts.shape, dtype=DTYPES[facts.dtype], pin_memory=pinned)
    with path.open("rb", buffering=0) as file:
        fill(bytes_of(tensor), file, begin)
    return tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, to be read or written."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_tensors(tensors: Mapping[str, Tensor], file: BinaryIO) -> None:
    """Append a safetensors file of these tensors (contiguous, on the CPU), without copying them in memory."""
    facts = {name: TensorFacts(_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    start, order = header(facts)
    write_all(file, memoryview(start))
    for name in order:
        write_all(file, bytes_of(tensors[name]))


def write_all(file: BinaryIO, left: memoryview) -> None:
    """Write all bytes to an unbuffered file, whose `write` may take fewer at a time."""
    while left:
        left = left[file.write(left) :]

"""The safetensors file format, as bytes: read a header, write files made of other files' tensors.

A safetensors file is an 8-byte little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`, and
the tensors' bytes without gaps (https://huggingface.co/docs/safetensors). Reading a header needs no tensor library,
so the API can plan a job; bytes are copied from file to file, so a shard of many blocks is written while none of them
is in memory. Import-light.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from workers.engine.files.model_files import BadFile, parse_json, shown
from workers.engine.files.places import Place

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
HEADER_BYTES = 2**24
"""Enough for about 100,000 tensors. The reference implementation allows 100 MB, which takes gigabytes to parse."""
_AXES = 8
_COPIED_AT_ONCE = 4
"""Tensors. One thread copies 1.2 GB/s from memory to memory (H100 host), less than a disk of today writes."""


class MalformedFile(BadFile):
    """Not a whole safetensors file."""


@dataclass(frozen=True)
class TensorFacts:
    """A stored tensor without its values."""

    dtype: str
    """As in the header: `BF16`, `F32`, …"""
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.parameters * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Slice:
    """Where a tensor's bytes lie."""

    facts: TensorFacts
    file: Path
    begin: int
    """First byte, counted from the start of the file."""
    whole: TensorFacts | None = None
    """The tensor at that byte, where this one is a part of it."""
    place: Place | None = None
    """The part."""

    def part(self, place: Place) -> Slice:
        """Where a part of this tensor lies. Of one expert, only its bytes are read."""
        whole, begin = self.facts, self.begin
        if place.expert is not None:
            whole = TensorFacts(whole.dtype, whole.shape[1:])
            begin += place.expert * whole.bytes
            place = replace(place, expert=None)
        return Slice(TensorFacts(whole.dtype, place.shape(whole.shape)), self.file, begin, whole, place)


def read_header(file: Path) -> dict[str, Slice]:
    """The tensors of one safetensors file, without reading them. Raises MalformedFile."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        found, end = _header_at(stream, 0, size, file)
    if end != size:
        raise MalformedFile(f"{file.name} should be {end} bytes long by its header but is {size}")
    return found


def read_headers(file: Path) -> list[dict[str, Slice]]:
    """The tensors of each safetensors file in a file that holds several, one after another. Raises MalformedFile."""
    size, end, found = file.stat().st_size, 0, []
    with file.open("rb") as stream:
        while end < size:
            tensors, end = _header_at(stream, end, size, file)
            found.append(tensors)
    return found


def _header_at(stream: BinaryIO, start: int, size: int, file: Path) -> tuple[dict[str, Slice], int]:
    """The tensors of the safetensors file that begins at byte `start` of `size`, and where it ends."""
    stream.seek(start)
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise MalformedFile(f"{file.name} is {size} bytes long, too short for a safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    begin = start + 8 + length
    if length > HEADER_BYTES or begin > size:
        raise MalformedFile(f"{file.name} announces a header of {length} bytes but is {size} bytes long")
    tensors, taken = parse_header(stream.read(length), file.name)
    if begin + taken > size:
        raise MalformedFile(f"{file.name} should be {begin + taken} bytes long by its header but is {size}")
    return {name: Slice(facts, file, begin + offset) for name, (facts, offset) in tensors.items()}, begin + taken


def parse_header(content: bytes, name: str) -> tuple[dict[str, tuple[TensorFacts, int]], int]:
    """Tensor name -> (facts, where its bytes begin), and how many bytes all of them take. MalformedFile.

    As in the reference implementation, the tensors' bytes follow one another without gap or overlap.
    """
    try:
        header = parse_json(content, "it")
        tensors = {key: _entry(key, entry) for key, entry in header.items() if key != "__metadata__"}
        end = 0
        for key, (facts, begin) in sorted(tensors.items(), key=lambda item: (item[1][1], item[1][0].bytes)):
            if begin != end:
                raise BadFile(f"the bytes of `{shown(key)}` begin at {begin}, those before it end at {end}")
            end += facts.bytes
    except BadFile as error:
        raise MalformedFile(f"{shown(name)} has no readable safetensors header: {error}") from error
    return tensors, end


def _entry(key: str, entry: Any) -> tuple[TensorFacts, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise BadFile(f"`{shown(key)}` has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise BadFile(f"`{shown(key)}` is of the unknown dtype {shown(dtype)}")
    if not _sizes(shape) or len(shape) > _AXES or not _sizes(offsets) or len(offsets) != 2:
        raise BadFile(f"`{shown(key)}` has the shape {shown(shape)} and data_offsets {shown(offsets)}")
    facts = TensorFacts(dtype, tuple(shape))
    if offsets[1] - offsets[0] != facts.bytes:
        raise BadFile(f"`{shown(key)}`, {dtype}{list(shape)}, cannot take {offsets[1] - offsets[0]} bytes")
    return facts, offsets[0]


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def merge(parts: Sequence[Mapping[str, Slice]], file: Path) -> None:
    """Write one safetensors file holding every tensor of `parts`, in order of their names: same parts, same bytes."""
    slices = {name: piece for part in parts for name, piece in part.items()}
    start, order = header({name: piece.facts for name, piece in slices.items()})
    ends = list(accumulate((slices[name].facts.bytes for name in order), initial=len(start)))
    with file.open("wb") as out:
        out.write(start)
        out.truncate(ends[-1])
    with ThreadPoolExecutor(_COPIED_AT_ONCE) as pool:
        copies = [pool.submit(_copy, slices[name], file, at) for name, at in zip(order, ends, strict=False)]
    for copy in copies:
        copy.result()


def header(tensors: Mapping[str, TensorFacts]) -> tuple[bytes, list[str]]:
    """(length and JSON header of a safetensors file, tensor names in the order of their bytes)."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers requires the format's name
    offset = 0
    # Widest type first, as the reference writer does, so that every tensor starts aligned to its element size.
    order = sorted(sorted(tensors), key=lambda name: -DTYPE_BYTES[tensors[name].dtype])
    for name in order:
        facts = tensors[name]
        entries[name] = {
            "dtype": facts.dtype,
            "shape": list(facts.shape),
            "data_offsets": [offset, offset + facts.bytes],
        }
        offset += facts.bytes
    encoded = json.dumps(entries, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded, order


def _copy(piece: Slice, file: Path, at: int) -> None:
    """From file to file by the system, without a way through this process. Raises OSError where the one ends early."""
    begin, end = piece.begin, piece.begin + piece.facts.bytes
    with piece.file.open("rb", buffering=0) as stream, file.open("r+b", buffering=0) as out:
        out.seek(at)
        while begin < end:
            sent = os.sendfile(out.fileno(), stream.fileno(), begin, end - begin)
            if not sent:
                raise OSError(f"{piece.file}: ends at byte {begin}, before what should be in it")
            begin += sent


def same_bytes(one: Slice, other: Slice) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if one.facts != other.facts:
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.begin)
        second.seek(other.begin)
        left = one.facts.bytes
        while left:
            size = min(left, 1 << 22)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def fill(buffer: memoryview, file: BinaryIO, offset: int) -> None:
    """Read bytes from `offset` on into all of `buffer`. Does not move the file's position, so threads may share it.

    `file` must be unbuffered. Raises OSError if it ends before.
    """
    while buffer:
        found = os.preadv(file.fileno(), [buffer], offset)
        if not found:
            raise OSError(f"{file.name}: ends at byte {offset}, before what should be in it")
        buffer, offset = buffer[found:], offset + found


def pack(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of `sizes`, cut into runs whose sums are at most `limit`; a larger item is a run of its own."""
    runs: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not runs or size > room:
            runs.append([])
            room = limit
        runs[-1].append(index)
        room -= size
    return runs

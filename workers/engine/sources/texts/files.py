"""Text files to characters or lines, a piece at a time: compressed or not, UTF-8, bounded in memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from workers.engine.errors import FAULTS, InvalidSpec, StorageUnavailable

CHUNK_BYTES = 2**20
LONGEST_LINE = 2**24
"""Bytes of a line of JSON: it has to be in memory as a whole, several times over."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


def kind_of(path: Path) -> str:
    """`.txt`, `.jsonl` or `.parquet`, compressed or not."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def characters(path: Path, field: str) -> Iterator[str]:
    """The text of a file without its byte order mark; encoded halves of surrogate pairs become lone surrogates.

    Raises InvalidSpec at `field` where it is not UTF-8 or not compressed as its name says.
    """
    left = b""
    for chunk in _chunks(path, field):
        data = left + chunk
        end = _last_lead(data)
        left = data[end:]
        yield _decoded(data[:end], path.name, field)
    yield _decoded(left, path.name, field)


def lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that hold something. They end at a line feed and nowhere else.

    Raises what `characters` raises, and InvalidSpec for a line above LONGEST_LINE.
    """
    parts: list[bytes] = []
    number, size = 1, 0
    for chunk in _chunks(path, field):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield from _line(number, b"".join([*parts, piece]), path.name, field)
            number, parts, size = number + 1, [], 0
        parts.append(rest)
        size += len(rest)
        if size > LONGEST_LINE:
            raise InvalidSpec(
                f"{path.name} line {number} is longer than {LONGEST_LINE // 2**20} MiB",
                "cut the document into several lines, or give it as a .txt file",
                field=field,
            )
    yield from _line(number, b"".join(parts), path.name, field)


def _line(number: int, data: bytes, name: str, field: str) -> Iterator[tuple[int, str]]:
    if data.strip():
        yield number, _decoded(data, f"{name} line {number}", field)


def _chunks(path: Path, field: str) -> Iterator[bytes]:
    with opened(path, field) as file:
        chunk = file.read(CHUNK_BYTES)
        if chunk.startswith(_UTF16_MARKS):
            raise InvalidSpec(
                f"{path.name} is not UTF-8 text: it begins with the byte order mark of UTF-16",
                "convert the file to UTF-8",
                field=field,
            )
        chunk = chunk.removeprefix(_UTF8_MARK)
        while chunk:
            yield chunk
            chunk = file.read(CHUNK_BYTES)


@contextmanager
def opened(path: Path, field: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed as they are read. Raises InvalidSpec for what is not so compressed, and where
    the file cannot be opened."""
    name = COMPRESSIONS.get(path.suffix)
    try:
        raw = path.open("rb")
    except OSError as error:
        refuse_fault(error, path, field)
        raise InvalidSpec(
            f"{path.name} cannot be read: {error.strerror}", "let the worker's user read the file", field=field
        ) from error
    with raw:
        if name is None:
            yield raw
            return
        try:
            with _unpacked(raw, name) as file:
                yield file
        except (OSError, EOFError, zlib.error) as error:
            refuse_fault(error, path, field)
            raise InvalidSpec(
                f"{path.name} cannot be decompressed: {error}",
                f"compress it with {name} again, or take {path.suffix} off the name of a file that is not compressed",
                field=field,
            ) from error


def refuse_fault(error: Exception, path: Path, field: str) -> None:
    """Raise StorageUnavailable where the disk or the process's limits are at fault, and not what is in the file."""
    if isinstance(error, OSError) and error.errno in FAULTS:
        raise StorageUnavailable(
            f"{path.name} cannot be read just now: {error.strerror}",
            "check the disk of the data directory, and the process's limits",
            field=field,
        ) from error


def _unpacked(raw: IO[bytes], name: str) -> IO[bytes]:
    if name == "gzip":  # as the API reads it too, which has no pyarrow
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    import pyarrow

    return cast("IO[bytes]", pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), name))


def _last_lead(data: bytes) -> int:
    """Index of the first byte of the last character of UTF-8 text, which may be incomplete."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:
            return len(data) - back
    return len(data)


def _decoded(data: bytes, where: str, field: str) -> str:
    try:
        return data.decode("utf-8", errors="surrogatepass")
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{where} is not UTF-8 text: {error}", "convert the file to UTF-8", field=field) from error

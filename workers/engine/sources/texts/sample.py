"""A sample of a local text, by which its length is foreseen before a job reads it. Import-light."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from workers.engine.sources.texts.documents import DOCUMENT_BREAK
from workers.engine.sources.texts.files import kind_of

SPOTS, SPOT_BYTES = 4, 2**14
"""Places of a .txt file, evenly apart, and bytes that are read at each."""
ROWS_BYTES = 2**20
"""From the beginning of a .jsonl file."""
UNPACKED_BYTES = 2**22
"""Of a .gz file; the length of one that has more is not foreseen."""


@dataclass(frozen=True)
class Sample:
    """Text, and how much of the file it is of."""

    text: str
    share: float
    """Bytes that were read of all bytes of the file, in (0, 1]."""


def sample(path: Path, column: str) -> Sample | None:
    """Of the text in a file, of rows in a column. None of formats that the API cannot read (.zst, .parquet), of rows
    that are conversations, whose text is the model's to write out, and of files that are not what their name says.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return _sample(cast(BinaryIO, file), kind_of(path), None, column)
        if path.suffix in (".txt", ".jsonl"):
            with path.open("rb") as file:
                return _sample(file, path.suffix, path.stat().st_size, column)
    except (OSError, EOFError, ValueError, RecursionError):  # the job says what is wrong with it
        pass
    return None


def _sample(file: BinaryIO, kind: str, size: int | None, column: str) -> Sample | None:
    """`size` of the file in bytes; None where that is seen at its end only."""
    if size is None:
        content = file.read(UNPACKED_BYTES + 1)
        if len(content) > UNPACKED_BYTES:
            return None
        return Sample(_text(content, kind, column), 1.0)
    if kind == ".jsonl":
        content = file.read(ROWS_BYTES)
        if len(content) < size:
            content = content[: content.rindex(b"\n") + 1]
        return Sample(_text(content, kind, column), len(content) / max(size, 1) or 1.0)
    if size <= SPOTS * SPOT_BYTES:
        return Sample(_text(file.read(), kind, column), 1.0)
    parts = []
    for spot in range(SPOTS):
        file.seek(spot * (size - SPOT_BYTES) // (SPOTS - 1))
        parts.append(_text(file.read(SPOT_BYTES), kind, column))
    return Sample("".join(parts), SPOTS * SPOT_BYTES / size)


def _text(content: bytes, kind: str, column: str) -> str:
    """Raises ValueError for lines that hold no text."""
    if kind == ".txt":
        return content.decode(errors="ignore")
    rows = (json.loads(line) for line in content.split(b"\n") if line.strip())
    return DOCUMENT_BREAK.join(part for row in rows for part in _parts(row, column) if part.strip())


def _parts(row: Any, column: str) -> list[str]:
    if not isinstance(row, dict) or column not in row:
        raise ValueError("no text")
    value = row[column]
    parts = [part for part in (value if isinstance(value, list) else [value]) if part is not None]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("no text")
    return parts

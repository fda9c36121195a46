"""The bytes of a result's file, compared with its digest as they are sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from app.publications.contract import PublishFailure, Result, ResultFile

READ_BYTES = 2**20


def pieces(file: ResultFile, result: Result) -> Iterator[bytes]:
    """The last one is given only where all of them are those of the result; otherwise raises PublishFailure."""
    digest, size, held = hashlib.sha256(), 0, b""
    with file.open() as source:
        while piece := source.read(READ_BYTES):
            if held:
                yield held
                result.done(len(held))
            digest.update(piece)
            size += len(piece)
            held = piece
    if digest.hexdigest() != file.sha256 or size != file.bytes:
        raise damaged(file.path)
    if held:
        yield held
        result.done(len(held))


def damaged(path: str) -> PublishFailure:
    return PublishFailure(
        "artifact_lost",
        f"{path} is not in the artifact store as it was made",
        "Restore it from a backup, or submit the job again.",
    )

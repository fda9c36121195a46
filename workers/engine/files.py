"""Files that appear whole or not at all, also beside other processes that write the same ones. Import-light."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def temporary_for(path: Path) -> Path:
    """A name beside `path` that nobody else uses. Ends in `.tmp`."""
    return path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")


def write_whole(path: Path, write: Callable[[Path], object], *, durable: bool) -> None:
    """Have `write` make a file under a temporary name, then give it its own. `durable`: it outlives a power cut."""
    temporary = temporary_for(path)
    try:
        write(temporary)
        if durable:
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Temporary names that no other process uses, and flushing to the disk. Import-light."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def temporary_for(path: Path) -> Path:
    """A name beside `path` that nobody else uses. Ends in `.tmp`."""
    return path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Small files that several processes may make at once."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_once(path: Path, text: str, *, mode: int = 0o644) -> str:
    """The text of the file, which is `text` where there was none. Of several processes one wins, none reads half.

    Raises OSError, and leaves nothing, where the text cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        fresh.touch(mode=mode, exist_ok=False)
        try:
            with fresh.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # a power cut must not leave the name of an empty file
            _name(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    return path.read_text(errors="backslashreplace")


def _name(fresh: Path, path: Path) -> None:
    """Give a whole file its name, unless another process was faster."""
    try:
        path.hardlink_to(fresh)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: the last one wins
        fresh.replace(path)

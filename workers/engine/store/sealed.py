"""Files whose names hold the digest of their content, so that damage is detected and the file not used.

    <stem>.<digest><suffix>      outside.99aa06d3014798d86001c324468d497f.safetensors

Content and digest appear in one rename: a kill at any moment leaves the older file, the newer one, or both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

# 128 bits of XXH3 read 28 GB/s on one core, sha256 1.7: this detects faults of disks, not forgery: who can write
# into these folders can write digests too. Files that leave the service have sha256 (`manifest.py`).
from xxhash import xxh3_128

from workers.engine.files.atomic_files import sync, temporary_for

if TYPE_CHECKING:
    from workers.engine.events import Events

DAMAGED = ".damaged"
"""Ends the name of a file that was set aside."""
_PIECE_BYTES = 2**22


class Sealed:
    """The sealed files of one folder. Files that this process wrote or checked are not checked again."""

    def __init__(self, folder: Path, events: Events | None = None) -> None:
        self._folder = folder
        self._events = events
        self._whole: set[str] = set()

    def write(self, stem: str, suffix: str, write: Callable[[Path], object], *, durable: bool) -> None:
        """Have `write` make a file, and give it its name. `durable`: it outlives a power cut."""
        temporary = temporary_for(self._folder / stem)
        try:
            write(temporary)
            self.adopt(stem, suffix, temporary, durable=durable)
        finally:
            temporary.unlink(missing_ok=True)

    def adopt(self, stem: str, suffix: str, temporary: Path, *, durable: bool, named: bool = True) -> None:
        """Give a file its name; older ones of the same stem go.

        `named`: its name, and all that were given before, outlive a power cut too.
        """
        name = f"{stem}.{digest(temporary)}{suffix}"
        if durable:
            sync(temporary)
        temporary.replace(self._folder / name)
        if durable and named:
            sync(self._folder)
        self._whole.add(name)
        for path in self._of(stem, suffix):
            if path.name != name:
                path.unlink(missing_ok=True)

    def find(self, stem: str, suffix: str) -> Path | None:
        """The file of a stem, the newest if there are several. A damaged one is set aside and reported as an event."""
        for path in self._of(stem, suffix):
            if path.name in self._whole or self._is_whole(path):
                return path
        return None

    def _of(self, stem: str, suffix: str) -> list[Path]:
        """Newest first."""
        name = re.compile(rf"{re.escape(stem)}\.[0-9a-f]{{32}}{re.escape(suffix)}")
        found = []
        for path in self._folder.glob(f"{stem}.*{suffix}"):
            if name.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another process has replaced it by a newer one
                    found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]

    def _is_whole(self, path: Path) -> bool:
        try:
            if path.name.split(".")[-2] == digest(path):
                self._whole.add(path.name)
                return True
        except FileNotFoundError:
            return False
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        else:
            why = "does not have the content it was written with"
        with suppress(FileNotFoundError):
            path.replace(path.with_name(path.name + DAMAGED))
        if self._events is not None:
            self._events.log(f"{path.name} {why}: set aside, its work is done again", "warning")
        return False


def digest(path: Path) -> str:
    """Of a file's bytes, 32 hexadecimal digits. Raises OSError."""
    found = xxh3_128()
    for piece in _pieces(path):
        found.update(piece)
    return str(found.hexdigest())


def _pieces(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            yield buffer[:size]

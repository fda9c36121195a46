"""Files of a result on this machine: where one may lie, how much of it is there, and its digest."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NoReturn

from espalier.documents.jobs import Artifact
from espalier.errors import CorruptFile, UnsafePath


def targets(folder: Path, files: Sequence[Artifact]) -> list[Path]:
    """Paths of the files. Raises UnsafePath where one lies outside, or two are one file where case does not count."""
    paths = [target(folder, file.path) for file in files]
    seen: dict[str, str] = {}
    for file, path in zip(files, paths, strict=True):
        name = unicodedata.normalize("NFC", str(path)).casefold()
        if name in seen:
            raise UnsafePath(f"the service offers {seen[name]!r} and {file.path!r}, which are one file: not downloaded")
        seen[name] = file.path
    return paths


def target(folder: Path, name: str) -> Path:
    """Path of the artifact `name`: always below `folder`, whatever the service returns and links on the disk point
    to. No name has letters that a terminal obeys, nor what Windows takes for a folder or a drive."""
    parts = PurePosixPath(name).parts
    if not name.isprintable() or "\\" in name or ":" in name:
        raise UnsafePath(f"the service offers a file named {name!r}, which no file of a result is: not downloaded")
    path = folder.joinpath(*parts)
    if not parts or ".." in parts or not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafePath(f"the service offers a file named {name!r}, which lies outside {folder}: not downloaded")
    return path


def is_there(path: Path, file: Artifact) -> bool:
    """Whether the file is complete already."""
    return path.is_file() and _sha256(path).hexdigest() == file.sha256


@dataclass
class Part:
    """The half of a file that has come so far, beside its place. A part of other content is never continued: the
    digest is in the name."""

    file: Artifact
    target: Path
    done: int = 0
    """Bytes that are there."""
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.path = self.target.with_name(f".{self.target.name}.{self.file.sha256[:16]}.part")

    def open(self) -> None:
        """Look what is there, and be ready for more."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._sink = self.path.open("ab")
        self.done = self._sink.tell()
        self._digest = _sha256(self.path)

    def restart(self) -> None:
        """Begin from nothing."""
        self._sink.truncate(0)
        self.done, self._digest = 0, hashlib.sha256()

    def append(self, chunk: bytes) -> None:
        """Keep what has come. Raises CorruptFile where that is more than was announced."""
        if self.done + len(chunk) > self.file.bytes:
            self._remove(f"more than the announced {self.file.bytes} bytes come")
        self._sink.write(chunk)
        self._digest.update(chunk)
        self.done += len(chunk)

    def close(self) -> None:
        """Write it out."""
        self._sink.close()

    def finish(self) -> None:
        """Give it its name, if its digest is the announced one. Raises CorruptFile, and removes it, if not."""
        self.close()
        if self._digest.hexdigest() != self.file.sha256:
            self._remove("the sha256 differs from the announced one")
        self.path.replace(self.target)

    def _remove(self, why: str) -> NoReturn:
        self.close()
        self.path.unlink()
        raise CorruptFile(f"{self.file.path}: {why}; the partial file was removed")


def _sha256(path: Path) -> hashlib._Hash:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256")

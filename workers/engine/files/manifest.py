"""The manifest: every file of a result with its size and sha256. Import-light.

python -m workers.engine.files.manifest DIR     # checks a downloaded result; exit status 1 if anything differs
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from workers.engine.report import FileEntry, Manifest

MANIFEST = "manifest.json"
SIGNATURE = "manifest.jws"
"""Beside the manifest in what a service hands out; it signs the manifest, which so cannot list it."""
_HASHED_AT_ONCE = 4
"""Files. One is as fast as a processor computes sha256."""


class Irregular(NamedTuple):
    code: str
    """link or special"""
    message: str


def file_entries(directory: Path, known: Sequence[FileEntry] = ()) -> list[FileEntry]:
    """Every file below `directory` but the manifest and its signature, by path. Those `known` are not read."""
    not_read = {directory / MANIFEST, directory / SIGNATURE, *(directory / entry.path for entry in known)}
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path not in not_read)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        digests = pool.map(sha256_file, files)
        found = [
            FileEntry(path=path.relative_to(directory).as_posix(), bytes=path.stat().st_size, sha256=digest)
            for path, digest in zip(files, digests, strict=True)
        ]
    return sorted([*known, *found], key=lambda entry: entry.path)


def verify(directory: Path) -> list[str]:
    """Differences between `directory` and its manifest, one line per file; empty if there are none."""
    others = [f"{path}: {why.message}" for path in sorted(paths(directory)) if (why := irregular(directory / path))]
    if others:
        return others
    manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
    expected = {entry.path: entry for entry in manifest.files}
    found = {entry.path: entry for entry in file_entries(directory)}
    return [
        f"{path}: " + ("missing" if path not in found else "not in the manifest" if path not in expected else "changed")
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path)
    ]


def paths(directory: Path) -> Iterator[str]:
    """All that is no folder, and links to folders, below `directory`; OSError where a folder cannot be listed."""

    def refused(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(directory, onerror=refused):
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in [*files, *links]:
            yield (Path(where) / name).relative_to(directory).as_posix()


def irregular(path: Path) -> Irregular | None:
    """A manifest names regular files. What a link leads to may change behind its back, and stays behind when the folder
    is copied; of a pipe or a device nothing is read."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        to = path.readlink()
        return Irregular("link", f"is a link to {to}: copy the folder with what links lead to, and check the copy")
    return None if stat.S_ISREG(mode) else Irregular("special", "is no regular file")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    differences = verify(Path(sys.argv[1]))
    sys.stdout.writelines(line + "\n" for line in differences or ["every file is as the manifest says"])
    sys.exit(1 if differences else 0)

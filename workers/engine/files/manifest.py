"""The manifest: every file of a result with its size and sha256. Import-light.

python -m workers.engine.files.manifest DIR     # checks a downloaded result; exit status 1 if anything differs
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workers.engine.report import FileEntry, Manifest

MANIFEST = "manifest.json"
SIGNATURE = "manifest.jws"
"""Beside the manifest in what a service hands out; it signs the manifest, which so cannot list it."""
_HASHED_AT_ONCE = 4
"""Files. One is as fast as a processor computes sha256."""


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
    manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
    expected = {entry.path: entry for entry in manifest.files}
    found = {entry.path: entry for entry in file_entries(directory)}
    return [
        f"{path}: " + ("missing" if path not in found else "not in the manifest" if path not in expected else "changed")
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path)
    ]


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    differences = verify(Path(sys.argv[1]))
    sys.stdout.writelines(line + "\n" for line in differences or ["every file is as the manifest says"])
    sys.exit(1 if differences else 0)

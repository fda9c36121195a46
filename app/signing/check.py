"""A downloaded folder against its manifest, and the manifest against its signature. Works without a network.

Links are not followed: a manifest names regular files. A hard link is a file like any other, and what its other names
change is found by the next check.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from app.signing.signature import NotVerified, Statement, verified
from workers.engine.files.manifest import MANIFEST, SIGNATURE, irregular, paths
from workers.engine.report import FileEntry, Manifest

PLAINLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Finding(NamedTuple):
    """Something that is not as it was signed."""

    code: str
    """missing, changed, extra, link, special, manifest, unsigned, signature, unknown_key, revoked_key, other_job,
    other_tenant."""
    path: str
    message: str


class Checked(NamedTuple):
    findings: list[Finding]
    statement: Statement | None
    """Of a signature that is right."""
    kid: str | None
    files: int
    """In the manifest."""


def check(
    folder: Path,
    published: dict[str, Any],
    *,
    job_id: str | None = None,
    tenant: str | None = None,
    ignored: Sequence[str] = (),
) -> Checked:
    """All that differs. `ignored` are globs of paths that may be there besides; OSError where a file cannot be read."""
    findings, statement, kid = [], None, None
    manifest_bytes, signature = _read(folder, MANIFEST), _read(folder, SIGNATURE)
    if manifest_bytes is None:
        manifest_bytes = Finding("manifest", MANIFEST, "is missing: nothing says which files belong here")
    if isinstance(manifest_bytes, Finding):
        return Checked([manifest_bytes], None, None, 0)
    if isinstance(signature, Finding):
        findings.append(signature)
    elif signature is None:
        findings.append(Finding("unsigned", SIGNATURE, "is missing: nothing says who made the manifest"))
    else:
        try:
            statement, key = verified(signature, published)
            kid = str(key["kid"])
        except NotVerified as error:
            findings.append(Finding(error.code, SIGNATURE, str(error)))
    if statement is not None:
        if statement.manifest_sha256 != hashlib.sha256(manifest_bytes).hexdigest():
            findings.append(Finding("manifest", MANIFEST, "is not the one that was signed"))
        if job_id not in (None, statement.job_id):
            findings.append(Finding("other_job", SIGNATURE, f"is of {statement.job_id}"))
        if tenant not in (None, statement.tenant):
            findings.append(Finding("other_tenant", SIGNATURE, f"is of tenant {statement.tenant}"))
    try:
        manifest = Manifest.model_validate_json(manifest_bytes)
    except ValidationError:
        return Checked([*findings, Finding("manifest", MANIFEST, "cannot be read")], statement, kid, 0)
    findings += _files(folder, manifest, ignored)
    return Checked(findings, statement, kid, len(manifest.files))


def _files(folder: Path, manifest: Manifest, ignored: Sequence[str]) -> Iterator[Finding]:
    expected = {entry.path: entry for entry in manifest.files}
    there = set(paths(folder)) - {MANIFEST, SIGNATURE}
    for path in sorted(expected.keys() | there):
        if path not in there:
            yield Finding("missing", path, "is missing")
        elif path not in expected:
            if not any(fnmatchcase(path, pattern) for pattern in ignored):
                yield _irregular(folder, path) or Finding("extra", path, "is not in the manifest")
        elif odd := _irregular(folder, path):
            yield odd
        elif not _is(folder / path, expected[path]):
            yield Finding("changed", path, "is not the file that was signed")


def _irregular(folder: Path, path: str) -> Finding | None:
    found = irregular(folder / path)
    return found and Finding(found.code, path, found.message)


def _is(path: Path, entry: FileEntry) -> bool:
    with _opened(path) as file:
        return (
            os.fstat(file.fileno()).st_size == entry.bytes
            and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        )


def _read(folder: Path, path: str) -> bytes | Finding | None:
    """Of the manifest or the signature; None where there is none."""
    try:
        if odd := _irregular(folder, path):
            return odd
        with _opened(folder / path) as file:
            return file.read()
    except FileNotFoundError:
        return None


def _opened(path: Path) -> BufferedReader:
    """A regular file, also where it has just been exchanged for a link, or for a pipe that nobody writes to."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | PLAINLY))

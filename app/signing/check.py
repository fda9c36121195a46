"""A downloaded folder against its manifest, and the manifest against its signature. Works without a network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from app.signing.signature import NotVerified, Statement, verified
from workers.engine.files.manifest import MANIFEST, SIGNATURE, sha256_file
from workers.engine.report import Manifest


class Finding(NamedTuple):
    """Something that is not as it was signed."""

    code: str
    """missing, changed, extra, manifest, unsigned, signature, unknown_key, revoked_key, other_job, other_tenant."""
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
    manifest_bytes = _read(folder / MANIFEST)
    signature = _read(folder / SIGNATURE)
    if manifest_bytes is None:
        return Checked(
            [Finding("manifest", MANIFEST, "is missing: nothing says which files belong here")], None, None, 0
        )
    if signature is None:
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
    there = set(_paths(folder)) - {MANIFEST, SIGNATURE}
    for path in sorted(expected.keys() | there):
        if path not in there:
            yield Finding("missing", path, "is missing")
        elif path not in expected:
            if not any(fnmatchcase(path, pattern) for pattern in ignored):
                yield Finding("extra", path, "is not in the manifest")
        else:
            file, entry = folder / path, expected[path]
            if not file.is_file() or file.stat().st_size != entry.bytes or sha256_file(file) != entry.sha256:
                yield Finding("changed", path, "is not the file that was signed")


def _paths(folder: Path) -> Iterator[str]:
    """All that is no folder, and links to folders, below `folder`."""
    for where, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in [*files, *links]:
            yield (Path(where) / name).relative_to(folder).as_posix()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None

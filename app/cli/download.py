"""`download`: a job's files, verified. An interrupted download goes on where it stopped."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.client import Service
from app.cli.display import Display, display
from app.cli.exits import CliError, Usage
from app.cli.options import AsJson, JobId, connect


class Corrupt(CliError):
    """A file's bytes are not those the service announced."""


def download(
    context: typer.Context,
    job_id: JobId,
    out: Annotated[Path, typer.Option(help="Folder for the files; made if missing.")],
    as_json: AsJson = False,
) -> None:
    """Download a job's model and report, checking every file's sha256."""
    with connect(context) as service:
        files = service.get(f"/v1/jobs/{job_id}/artifacts")["data"]
        targets = [target(out, file["path"]) for file in files]
        with display() as shown:
            for file, path in zip(files, targets, strict=True):
                fetch(service, file, path, shown)
    if as_json:
        saved = [
            {"path": str(p), "bytes": f["bytes"], "sha256": f["sha256"]} for f, p in zip(files, targets, strict=True)
        ]
        output.print_json({"id": job_id, "files": saved})
    else:
        total = sum(file["bytes"] for file in files)
        output.stdout.print(f"{len(files)} files, {total:,} bytes, digests verified: {out.absolute()}")


def target(out: Path, name: str) -> Path:
    """Path of the artifact `name`: always below `out`, whatever the service returns and links on the disk point to."""
    parts = PurePosixPath(name).parts
    path = out.joinpath(*parts)
    if not parts or ".." in parts or not path.resolve().is_relative_to(out.resolve()):
        raise Usage(f"the service offers a file named {name!r}, which lies outside {out}: not downloaded")
    return path


def fetch(service: Service, file: dict[str, Any], path: Path, shown: Display) -> None:
    """Bring `path` to the announced bytes: nothing to do, or the missing rest, then an atomic rename."""
    if path.is_file() and _sha256(path).hexdigest() == file["sha256"]:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The digest in the name: a part of other content is never continued.
    part = path.with_name(f".{path.name}.{file['sha256'][:16]}.part")
    done = part.stat().st_size if part.exists() else 0
    digest = _sha256(part) if done else hashlib.sha256()
    if done < file["bytes"] or not part.exists():
        with service.stream(file["url"], {"Range": f"bytes={done}-"} if done else {}) as response:
            if response.status_code != 206:
                done, digest = 0, hashlib.sha256()
            with part.open("ab" if done else "wb") as sink:
                for chunk in response.iter_raw():
                    sink.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    shown.show("download", done, file["bytes"], f"bytes of {file['path']}")
    if digest.hexdigest() != file["sha256"]:
        part.unlink()
        raise Corrupt(f"{file['path']}: the sha256 differs from the announced one; the partial file was removed")
    part.replace(path)


def _sha256(path: Path) -> hashlib._Hash:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256")

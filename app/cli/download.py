"""`download`: a job's files, verified. An interrupted download goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli import output
from app.cli.display import display
from app.cli.options import AsJson, JobId, connect
from espalier.documents import Artifact


def download(
    context: typer.Context,
    job_id: JobId,
    out: Annotated[Path, typer.Option(help="Folder for the files; made if missing.")],
    as_json: AsJson = False,
) -> None:
    """Download a job's model and report, checking every file's sha256."""
    with connect(context) as client, display() as shown:
        job = client.job_ref(job_id)
        files = job.artifacts()
        removed = job.refresh().retention.removed
        total = sum(file.bytes for file in files)
        there: dict[str, int] = {}

        def progress(file: Artifact, done: int) -> None:
            there[file.path] = done
            shown.show("download", sum(there.values()), total, f"bytes of {len(files)} files")

        paths = job.download(out, files=files, on_progress=progress)
    if as_json:
        saved = [
            {"path": str(path), "bytes": file.bytes, "sha256": file.sha256}
            for file, path in zip(files, paths, strict=True)
        ]
        output.print_json({"id": job_id, "files": saved})
    else:
        if removed:
            output.stderr.print(f"its other files were removed {output.local_time(removed.at)} ({removed.because})")
        output.stdout.print(f"{len(files)} files, {total:,} bytes, digests verified: {out.absolute()}")

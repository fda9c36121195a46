"""The files of a finished job: their list, and downloads with ranges and digests."""

from __future__ import annotations

import base64
import mimetypes
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.access import ArtifactReader
from app.artifacts.removed import check_not_removed, removed
from app.artifacts.signed import signature
from app.artifacts.stored import check_stored
from app.errors import NotFound
from app.http.conditional import PRIVATE, byte_range, matches
from app.http.private import private_json
from app.http.problems import responses
from app.http.route import StrictRoute
from app.jobs import repository
from app.jobs.models import Artifact
from app.jobs.schemas import ArtifactList
from app.services import ServicesDep
from workers.engine.files.manifest import SIGNATURE

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"], route_class=StrictRoute)

ArtifactPath = Annotated[str, Path(examples=["model.safetensors"], description="As the list gives it.")]
BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("", operation_id="artifacts_list", response_model=ArtifactList, responses=responses(404))
def list_artifacts(seen: ArtifactReader, has: ServicesDep) -> Response:
    """The files of the result; none while the job is not `succeeded`."""
    with has.database.read() as session:
        found = [*repository.artifacts(session, seen.principal.tenant_id, seen.job.id)]
        signed = signature(session, has.signing, seen.principal.tenant_id, seen.job.id, seen.job.finished_at)
        gone = removed(session, seen.principal.tenant_id, seen.job.id)
    if signed:
        found = sorted([*found, signed.file], key=lambda file: file.path)
    files = [
        {
            "path": file.path,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "media_type": media_type(file.path),
            "url": f"/v1/jobs/{seen.job.id}/artifacts/{quote(file.path)}",
        }
        for file in found
    ]
    return private_json({"data": files, "removed": gone and {**gone.said, "paths": gone.paths, "bytes": gone.bytes}})


@router.head("/{path:path}", operation_id="artifacts_head", response_class=Response, responses=responses(404, 410))
@router.get(
    "/{path:path}",
    operation_id="artifacts_download",
    response_class=Response,
    responses={
        **responses(404, 410, 416),
        200: {"content": BYTES, "description": "The file; Repr-Digest and ETag are its SHA-256."},
        206: {"content": BYTES, "description": "The range asked for."},
        304: {"description": "You have it."},
    },
)
def download(
    request: Request,
    path: ArtifactPath,
    seen: ArtifactReader,
    has: ServicesDep,
    range_: Annotated[str | None, Header(alias="Range", description="One range of bytes.")] = None,
    if_range: Annotated[str | None, Header(description="ETag of the file the range continues.")] = None,
    if_none_match: Annotated[str | None, Header(description="ETag of the file you have.")] = None,
) -> Response:
    """A file of the result."""
    tenant_id, signed = seen.principal.tenant_id, None
    with has.database.read() as session:
        file = repository.artifact(session, tenant_id, seen.job.id, path) if "\0" not in path else None
        if path == SIGNATURE:
            signed = signature(session, has.signing, tenant_id, seen.job.id, seen.job.finished_at)
            file = signed and signed.file
        if file is None:
            check_not_removed(session, tenant_id, seen.job.id, path)
    if file is None:
        raise NotFound("The job has no such file: the list of its artifacts names the ones it has.")
    headers = {**PRIVATE, **described(file)}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    wanted = byte_range(range_, file.bytes) if if_range in (None, headers["ETag"]) else None
    start, end = wanted or (0, file.bytes)
    headers["Content-Length"] = str(end - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    status = 206 if wanted else 200
    kind = media_type(file.path)
    if signed is None:
        check_stored(has.store, file)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    if signed is not None:
        return Response(signed.content[start:end], status, headers, kind)
    return StreamingResponse(has.store.open_range(file.key, start, end), status, headers, kind)


def described(file: Artifact) -> dict[str, str]:
    """Headers of a file, the same for every part of it that is sent."""
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return {
        "ETag": f'"{file.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(file.path.rpartition('/')[2], safe='')}",
        "X-Content-Type-Options": "nosniff",
    }


def media_type(path: str) -> str:
    if path.endswith(".md"):
        return "text/markdown"
    if path == SIGNATURE:
        return "application/jose"
    return mimetypes.guess_type(path)[0] or "application/octet-stream"

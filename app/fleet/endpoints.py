"""GET /v1/workers: what does the work, and what it is doing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.access import Reader
from app.fleet.schemas import WorkerList
from app.http.private import private_json
from app.http.problems import responses
from app.http.route import StrictRoute
from app.jobs import fleet
from app.jobs.models import WorkerRecord
from app.jobs.views import iso
from app.services import ServicesDep

router = APIRouter(prefix="/v1/workers", tags=["workers"], route_class=StrictRoute)


@router.get("", operation_id="workers_list", response_model=WorkerList, responses=responses())
def list_workers(principal: Reader, has: ServicesDep) -> Response:
    """The workers, alive or silent since a while, with their devices and what those are doing for this tenant."""
    with has.database.read() as session:
        held = fleet.jobs_on_devices(session)
        data = [_worker(worker, alive, held, principal.tenant_id) for worker, alive in fleet.known(session)]
    return private_json({"data": data})


def _worker(worker: WorkerRecord, alive: bool, held: dict[str, tuple[str, str]], tenant_id: str) -> dict[str, Any]:
    devices = []
    for part in worker.parts or []:
        job_id, owner = held.get(part["key"], (None, None))
        shown = {name: part[name] for name in ("name", "model", "memory_bytes")}
        devices.append({**shown, "busy": job_id is not None, "job_id": job_id if owner == tenant_id else None})
    return {
        "id": worker.id,
        "name": worker.name,
        "kind": worker.kind,
        "alive": alive,
        "last_seen_at": iso(worker.seen_at),
        "memory_bytes": worker.memory_bytes,
        "devices": devices,
        "use": worker.use,
        "methods": worker.methods,
    }

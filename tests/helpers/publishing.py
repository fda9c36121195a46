"""Places to publish to, and the process that publishes, for tests."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from sqlalchemy import update

from app.publications.deliverer import Deliverer
from app.publications.models import Publication
from tests.helpers.api import Api

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what has nothing to do with the kind of database."""
SECRET = "not-for-anybodys-eyes-7f3a"
"""Of every place."""


def set_up(api: Api, *places: tuple[str, dict[str, Any]]) -> None:
    """Write the operator's file, and the file that the secrets are read from."""
    path = api.services.settings.credentials
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "secret.txt").write_text(SECRET + "\n")
    lines = []
    for name, fields in places:
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in ({"tenants": ["ours"]} | fields).items())]
    path.write_text("\n".join(lines) + "\n")


def secret(api: Api) -> dict[str, str]:
    return {"file": str(api.services.settings.credentials.parent / "secret.txt")}


def deliverer(api: Api, beat_s: float = 60) -> Deliverer:
    """One that has the keys of the service."""
    has = api.services
    return Deliverer(has.database, has.store, has.credentials, has.signing, beat_s)


def all_due(api: Api) -> None:
    """As if the waits between tries, and leases, were over."""
    with api.database.write() as session:
        session.execute(update(Publication).values(due_at=0))


def of(api: Api, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The job's publications, as its body has them; its list says the same."""
    found: list[dict[str, Any]] = api.get(job).json()["publications"]
    assert found == api.get(job, "/publications").json()["data"]
    return found


def publish(api: Api, job: dict[str, Any], body: dict[str, Any]) -> httpx2.Response:
    return api.client.post(f"/v1/jobs/{job['id']}/publications", json=body)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)

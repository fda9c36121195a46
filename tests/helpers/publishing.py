"""Places to publish to, and the process that publishes, for tests."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx2
import obstore
import pytest
from obstore.store import S3Store
from sqlalchemy import update

from app.publications.deliverer import Deliverer
from app.publications.models import Publication
from app.signing.keys import KeyRing
from tests.helpers.api import Api

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what has nothing to do with the kind of database."""
SECRET = "not-for-anybodys-eyes-7f3a"
"""Of every place."""


class Bucket:
    """A bucket of moto's, and what is in it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.name = endpoint, f"p{uuid.uuid4().hex[:12]}"

    def make(self) -> None:
        httpx2.put(f"{self.endpoint}/{self.name}", trust_env=False, timeout=60).raise_for_status()

    def place(self, api: Api, name: str = "models", **fields: Any) -> tuple[str, dict[str, Any]]:
        url = f"s3://{self.name}/base/{{tenant}}"
        keys = {"access_key_id": secret(api), "secret_access_key": secret(api)}
        return name, {"to": "s3", "url": url, "endpoint": self.endpoint, **keys, **fields}

    @property
    def _store(self) -> S3Store:
        config: Any = {"endpoint": self.endpoint, "region": "us-east-1", "access_key_id": "x", "secret_access_key": "x"}
        return S3Store(self.name, config=config, client_options={"allow_http": True})

    def files(self, folder: str) -> dict[str, bytes]:
        paths = [each["path"] for page in obstore.list(self._store, prefix=folder) for each in page]
        return {p.removeprefix(f"{folder}/"): bytes(obstore.get(self._store, p).bytes()) for p in paths}

    def written(self, folder: str) -> dict[str, Any]:
        """When each file was."""
        pages = obstore.list(self._store, prefix=folder)
        return {each["path"]: each["last_modified"] for page in pages for each in page}


def bucket_of(api: Api, endpoint: str) -> Bucket:
    """One that the tenant `ours` may publish to, as `models`."""
    KeyRing(api.services.signing.path, make=True)
    made = Bucket(endpoint)
    made.make()
    set_up(api, made.place(api))
    return made


def asked(path: str = "a/b", **fields: Any) -> dict[str, Any]:
    return {"to": "s3", "credentials": "models", "path": path, **fields}


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

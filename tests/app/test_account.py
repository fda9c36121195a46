"""Who is asking: /v1/me, and the name of the key on what it has asked for."""

from __future__ import annotations

import threading
from contextlib import suppress

import httpx2
import pytest
from sqlalchemy.orm import Session

from app.keys import repository
from app.keys.models import Tenant
from app.keys.scopes import SCOPES
from tests.helpers.api import SPEC, Api, make_key


def test_me_is_the_key_of_the_request(api: Api) -> None:
    me = api.client.get("/v1/me").json()
    assert me["tenant"] == {"id": api.tenant_id, "name": "ours"}
    assert (me["key"]["id"], me["key"]["name"], me["key"]["expires_at"]) == (api.key_id, "test", None)
    assert sorted(me["key"]["scopes"]) == sorted(SCOPES)
    assert me["limits"]["max_attempts"] == api.services.settings.max_attempts


def test_any_key_may_ask(api: Api) -> None:
    text, key_id, tenant_id = make_key(api.services, "theirs", ("artifacts:read",), expires_days=3)
    me = api.client.get("/v1/me", headers={"Authorization": f"Bearer {text}"}).json()
    assert (me["tenant"]["id"], me["key"]["id"], me["key"]["scopes"]) == (tenant_id, key_id, ["artifacts:read"])
    assert me["key"]["expires_at"] > me["key"]["created_at"]


def test_jobs_and_children_of_sweeps_say_who_asked(api: Api) -> None:
    job = api.submit()
    assert job["asked_by"] == api.get(job).json()["asked_by"] == "test"
    api.client.post("/v1/sweeps", json={"spec": SPEC, "grid": {"/seed": [1, 2]}})
    assert [job["asked_by"] for job in api.client.get("/v1/jobs").json()["data"]] == ["test"] * 3


def test_two_first_keys_of_a_tenant_at_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find no tenant of the name before either has made it; SQLite makes one wait."""
    both, real = threading.Barrier(2), repository.tenant_named

    def look(session: Session, name: str) -> Tenant | None:
        found = real(session, name)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return found

    monkeypatch.setattr(repository, "tenant_named", look)
    answers: list[httpx2.Response] = []

    def send() -> None:
        asked = {"tenant": "fresh", "name": "ci", "scopes": ["jobs:read"]}
        answers.append(api.client.post("/v1/keys", json=asked))

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201, 201]
    assert len({answer.json()["tenant"]["id"] for answer in answers}) == 1

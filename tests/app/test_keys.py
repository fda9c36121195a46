"""API keys over HTTP: an operator's part, and nobody else's."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from app.keys.scopes import SCOPES
from tests.helpers.api import SPEC, Api, make_key, pointers
from tests.helpers.conformity import document

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SUBMIT: dict[str, Any] = {"tenant": "theirs", "name": "ci", "scopes": ["jobs:read", "jobs:write"], "expires_days": 30}


@pytest.fixture
def operator(api: Api) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_key(api.services, 'operators', scopes=('admin',))[0]}"}


def test_a_key_is_made_used_and_revoked(api: Api, operator: dict[str, str]) -> None:
    answer = api.client.post("/v1/keys", json=SUBMIT, headers=operator)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
    made = answer.json()
    assert (made["tenant"]["name"], made["scopes"], made["revoked_at"]) == ("theirs", SUBMIT["scopes"], None)
    theirs = {"Authorization": f"Bearer {made['text']}"}
    job = api.client.post("/v1/jobs", json={"spec": SPEC}, headers=theirs)
    assert job.status_code == 202
    assert api.client.get(job.headers["Location"]).status_code == 404  # another tenant's
    session = api.client.post("/v1/session", headers=theirs).headers["Set-Cookie"].partition(";")[0]
    assert api.client.get("/v1/me", headers={"Cookie": session, "Authorization": theirs["Authorization"]}).is_success
    for _ in range(2):
        revoked = api.client.post(f"/v1/keys/{made['id']}/revoke", headers=operator)
        assert revoked.status_code == 200
    assert revoked.json()["revoked_at"] is not None
    assert api.client.get("/v1/jobs", headers=theirs).json()["code"] == "revoked_key"


def test_the_text_is_in_no_other_answer(api: Api, operator: dict[str, str]) -> None:
    made = api.client.post("/v1/keys", json=SUBMIT, headers=operator).json()
    listed = api.client.get("/v1/keys", headers=operator)
    assert made["text"] not in listed.text
    assert {key: value for key, value in made.items() if key != "text"} in listed.json()["data"]
    assert {key["tenant"]["name"] for key in listed.json()["data"]} == {"ours", "operators", "theirs"}


def test_only_operators_may(api: Api, foreign: httpx2.Headers) -> None:
    own = api.client.get("/v1/me").json()["key"]["id"]
    others = tuple(scope for scope in SCOPES if scope != "admin")
    for scopes in (others, ("jobs:read",)):
        headers = {"Authorization": f"Bearer {make_key(api.services, 'ours', scopes=scopes)[0]}"}
        for method, path in (("GET", ""), ("POST", ""), ("POST", f"/{own}/revoke"), ("POST", "/key_0/revoke")):
            body = SUBMIT if path == "" and method == "POST" else None
            answer = api.client.request(method, f"/v1/keys{path}", json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), (method, path)
    assert {path for path in document()["paths"] if path.startswith("/v1/keys")} == {
        "/v1/keys",
        "/v1/keys/{key_id}/revoke",
    }


def test_mistakes_are_refused_with_their_fields(api: Api, operator: dict[str, str]) -> None:
    for change, pointer in (
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["root"]}, "/scopes/0"),
        ({"name": ""}, "/name"),
        ({"tenant": "a\nb"}, "/tenant"),
        ({"expires_days": 0}, "/expires_days"),
        ({"more": 1}, "/more"),
    ):
        answer = api.client.post("/v1/keys", json={**SUBMIT, **change}, headers=operator)
        assert (answer.status_code, pointers(answer.json())) == (422, [pointer])
    assert api.client.post("/v1/keys/key_0/revoke", headers=operator).status_code == 404
    assert len(api.client.get("/v1/keys", headers=operator).json()["data"]) == 2

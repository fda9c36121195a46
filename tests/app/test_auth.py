"""API keys: their text, their life, their scopes, and that nobody logs them."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import pytest
import structlog
from sqlalchemy import event, update

from app.db import Database, now_ms
from app.errors import InvalidRequest, NotFound
from app.keys import service as keys
from app.keys import tokens
from app.keys.models import ApiKey
from app.keys.scopes import SCOPES, Scope
from app.logs import configure_logging
from tests.helpers.api import SPEC, Api, eventually, make_key
from tests.helpers.conformity import document


class TestTokens:
    def test_look_alike_and_are_all_different(self) -> None:
        made = {tokens.new_token() for _ in range(200)}
        assert len(made) == 200
        assert all(re.fullmatch(r"espk_[0-9A-Za-z]{49}", token) for token in made)
        assert all(tokens.well_formed(token) for token in made)

    def test_a_known_checksum(self) -> None:
        """zlib.crc32(b"A" * 43) = 204167558 = 0 13 50 41 19 8 in base 62 (0-9, A-Z, a-z)."""
        assert tokens.well_formed("espk_" + "A" * 43 + "0DofJ8")

    def test_one_wrong_character_is_noticed(self) -> None:
        token = tokens.new_token()
        for i in range(5, len(token)):
            wrong = token[:i] + ("a" if token[i] != "a" else "b") + token[i + 1 :]
            assert not tokens.well_formed(wrong)

    @pytest.mark.parametrize("text", ["", "espk_", "espk_" + "é" * 49, "espk_" + "-" * 49, "xxxx_" + "A" * 49])
    def test_garbage_is_noticed(self, text: str) -> None:
        assert not tokens.well_formed(text)

    def test_the_hash_needs_the_secret(self) -> None:
        token = tokens.new_token()
        assert tokens.hash_token(token, b"a") != tokens.hash_token(token, b"b")
        assert len(tokens.hash_token(token, b"a")) == 64


class TestKeys:
    def create(self, database: Database, **changes: Any) -> tuple[ApiKey, str]:
        arguments: dict[str, Any] = {
            "secret": b"s",
            "tenant": "t",
            "name": "n",
            "scopes": ["jobs:read"],
            "expires_days": None,
        }
        with database.write() as session:
            key, text = keys.create_key(session, **{**arguments, **changes})
            session.expunge_all()
        return key, text

    def test_the_text_is_not_stored(self, database: Database) -> None:
        _, text = self.create(database)
        with database.read() as session:
            [(key, _)] = keys.list_keys(session)
        assert key.hash == tokens.hash_token(text, b"s")
        assert text not in str(vars(key))

    def test_one_tenant_has_many(self, database: Database) -> None:
        first, _ = self.create(database)
        second, _ = self.create(database)
        other, _ = self.create(database, tenant="u")
        assert first.tenant_id == second.tenant_id != other.tenant_id
        with database.read() as session:
            assert [(key.id, tenant) for key, tenant in keys.list_keys(session)] == [
                (first.id, "t"),
                (second.id, "t"),
                (other.id, "u"),
            ]

    @pytest.mark.parametrize("scopes", [[], ["jobs:read", "root"]])
    def test_scopes_are_checked(self, database: Database, scopes: list[str]) -> None:
        with pytest.raises(InvalidRequest) as caught:
            self.create(database, scopes=scopes)
        assert caught.value.extra["allowed"] == list(SCOPES)

    def test_revoking_twice_keeps_the_first_date(self, database: Database) -> None:
        key, _ = self.create(database)
        with database.write() as session:
            first = keys.revoke_key(session, key.id).revoked_at
        with database.write() as session:
            assert keys.revoke_key(session, key.id).revoked_at == first is not None

    def test_revoking_what_is_not_there(self, database: Database) -> None:
        with database.write() as session, pytest.raises(NotFound):
            keys.revoke_key(session, "key_0")


class TestRequests:
    def refused(self, api: Api, authorization: str | None) -> dict[str, Any]:
        api.client.headers.pop("Authorization", None)
        headers = {} if authorization is None else {"Authorization": authorization}
        response = api.client.get("/v1/jobs", headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
        assert response.json()["detail"]
        problem: dict[str, Any] = response.json()
        return problem

    def test_without_a_key(self, api: Api) -> None:
        for authorization in (None, "", "Bearer", "Bearer ", "Basic dTpw", "espk_x"):
            assert self.refused(api, authorization)["code"] == "unauthenticated"

    def test_with_an_unknown_key(self, api: Api) -> None:
        assert self.refused(api, f"Bearer {tokens.new_token()}")["code"] == "invalid_key"

    def test_garbage_costs_no_query(self, api: Api) -> None:
        statements: list[str] = []
        event.listen(api.database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        problem = self.refused(api, f"Bearer {api.key[:-1]}_")
        assert problem["code"] == "invalid_key"
        assert "api_keys" not in " ".join(statements)

    def test_with_a_revoked_key(self, api: Api) -> None:
        assert api.client.get("/v1/jobs").status_code == 200
        with api.database.write() as session:
            keys.revoke_key(session, api.key_id)
        assert self.refused(api, f"Bearer {api.key}")["code"] == "revoked_key"

    def test_with_an_expired_key(self, api: Api) -> None:
        text, key_id, _ = make_key(api.services, "ours", expires_days=1)
        headers = {"Authorization": f"Bearer {text}"}
        assert api.client.get("/v1/jobs", headers=headers).status_code == 200
        with api.database.write() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key_id).values(expires_at=now_ms() - 1))
        assert self.refused(api, f"Bearer {text}")["code"] == "expired_key"

    def test_the_scheme_is_case_insensitive(self, api: Api) -> None:
        assert api.client.get("/v1/jobs", headers={"Authorization": f"bearer {api.key}"}).status_code == 200

    def test_each_endpoint_asks_for_its_scope(self, api: Api) -> None:
        job_id = api.submit()["id"]

        def ask(method: str, path: str, body: Any, *scopes: Scope) -> httpx2.Response:
            headers = {"Authorization": f"Bearer {make_key(api.services, 'ours', scopes)[0]}"}
            return api.client.request(method, f"/v1/jobs{path.format(id=job_id)}", json=body, headers=headers)

        needed: list[tuple[str, str, Any, Scope]] = [
            ("POST", "", {"spec": SPEC}, "jobs:write"),
            ("GET", "", None, "jobs:read"),
            ("GET", "/{id}", None, "jobs:read"),
            ("PATCH", "/{id}", {"labels": {}}, "jobs:write"),
            ("GET", "/{id}/events", None, "jobs:read"),
            ("GET", "/{id}/attempts", None, "jobs:read"),
            ("GET", "/{id}/logs", None, "jobs:read"),
            ("GET", "/{id}/report", None, "jobs:read"),
            ("GET", "/{id}/artifacts", None, "artifacts:read"),
            ("GET", "/{id}/artifacts/model.safetensors", None, "artifacts:read"),
            ("POST", "/{id}/cancel", None, "jobs:cancel"),
            ("POST", "/{id}/pause", None, "jobs:cancel"),
            ("POST", "/{id}/resume", None, "jobs:write"),
            ("POST", "/{id}/retry", None, "jobs:write"),
            ("DELETE", "/{id}", None, "jobs:write"),
        ]
        for method, path, body, scope in needed:
            refused = ask(method, path, body, *(other for other in SCOPES if other != scope))
            assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope"), (method, path)
            assert refused.json()["allowed"] == [scope]
            assert ask(method, path, body, scope).status_code not in (401, 403), (method, path)

    def test_a_priority_above_0_asks_for_its_scope(self, api: Api) -> None:
        headers = {"Authorization": f"Bearer {make_key(api.services, 'ours', ('jobs:write',))[0]}"}
        for path, body in (("/v1/jobs", {"spec": SPEC}), ("/v1/sweeps", {"spec": SPEC, "grid": {"/seed": [1, 2]}})):
            for priority, status in ((-5, 202), (0, 202), (1, 403)):
                answer = api.client.post(path, json={**body, "priority": priority}, headers=headers)
                assert answer.status_code == status
            assert (answer.json()["code"], answer.json()["allowed"]) == ("missing_scope", ["jobs:priority"])

    def test_the_last_use_is_noted_once_a_minute(self, api: Api) -> None:
        def last_used() -> int | None:
            with api.database.read() as session:
                [(key, _)] = keys.list_keys(session)
                return key.last_used_at

        assert last_used() is None
        api.client.get("/v1/jobs")
        eventually(last_used)
        first = last_used()
        for _ in range(5):
            api.client.get("/v1/jobs")
        assert last_used() == first
        with api.database.write() as session:
            session.execute(update(ApiKey).values(last_used_at=now_ms() - keys.TOUCH_MS - 1))
        api.client.get("/v1/jobs")
        eventually(lambda: (last_used() or 0) >= (first or 0))

    def test_every_route_but_the_probes_needs_a_key(self, api: Api) -> None:
        del api.client.headers["Authorization"]
        for path, operations in document()["paths"].items():
            for method in operations:
                body = {"spec": SPEC, "labels": {}} if method in ("post", "patch") else None
                response = api.client.request(method, path.replace("{job_id}", "job_" + "0" * 32), json=body)
                assert (response.status_code == 401) is path.startswith("/v1"), (method, path, response.text)


def test_keys_are_cut_out_of_log_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever they stand: libraries log objects too."""
    token = tokens.new_token()
    configure_logging("info")
    log = structlog.get_logger("a")
    log.info(f"header was Bearer {token}", exception=f"x\n{token}", headers=[{"authorization": token}], n=1)
    line = capfd.readouterr().err
    assert token not in line
    assert json.loads(line)["event"] == "header was Bearer espk_[redacted]"

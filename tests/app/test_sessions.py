"""Sessions of browsers: what the cookie is, what it may, when it ends, and what other sites cannot do with it."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from app.db import now_ms
from app.jobs.views import iso
from app.keys import service as keys
from app.keys.models import ApiKey
from app.sessions import service
from app.sessions.models import BrowserSession
from tests.helpers.api import SPEC, Api, make_key
from tests.helpers.conformity import conforming, document

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For classes that ask nothing of the database that TestTheEnd, on both, does not."""
HERE = {"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}


def anyone(api: Api, **cookies: str) -> TestClient:
    """A client without a key, of the same running API."""
    client = TestClient(api.client.app, cookies=cookies)
    client.portal = api.client.portal
    client.event_hooks["response"].append(conforming)
    return client


class Browser:
    """A client without a key, with the cookie that it was given."""

    def __init__(self, api: Api, key: str, **headers: str) -> None:
        self.client = anyone(api)
        self.signed_in = self.client.post("/v1/session", headers={"Authorization": f"Bearer {key}", **HERE, **headers})
        assert self.signed_in.status_code == 201, self.signed_in.text
        self.cookie = self.signed_in.headers["Set-Cookie"]
        self.csrf = {**HERE, "X-CSRF-Token": self.signed_in.json()["csrf_token"]}

    @property
    def token(self) -> str:
        found = re.search(r"session=([\w-]+);", self.cookie)
        assert found
        return found[1]

    def get(self, path: str) -> httpx2.Response:
        return self.client.get(path)


@pytest.fixture
def browser(api: Api) -> Browser:
    return Browser(api, api.key)


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


@on_sqlite
class TestSigningIn:
    def test_takes_a_key_and_gives_a_cookie_no_script_can_read(self, browser: Browser) -> None:
        attributes = {part.strip().lower() for part in browser.cookie.split(";")[1:]}
        assert attributes == {"httponly", "samesite=strict", "path=/", "max-age=43200"}
        assert browser.signed_in.headers["Cache-Control"] == "no-store"
        assert browser.get("/v1/jobs").json()["data"] == []
        assert browser.get("/v1/session").json() == browser.signed_in.json()

    def test_over_https_the_cookie_is_of_this_host_and_secure(self, api: Api) -> None:
        """Behind a proxy as well: the browser's Origin says how the browser speaks."""
        cookie = Browser(api, api.key, Origin="https://testserver").cookie
        assert cookie.startswith("__Host-espalier_session=")
        assert "; Secure" in cookie
        assert "Domain" not in cookie
        token = cookie.partition("=")[2].partition(";")[0]
        answer = anyone(api).get("/v1/jobs", headers={"Cookie": f"__Host-espalier_session={token}"})
        assert answer.status_code == 200

    def test_over_https_no_other_host_of_the_domain_signs_in_as_somebody_else(self, api: Api, browser: Browser) -> None:
        """A cookie of a plain name can be set by such a host, with the session of whoever runs it."""
        planted = anyone(api, espalier_session=browser.token)
        assert planted.get("/v1/jobs").status_code == 200
        assert code(planted.get("https://testserver/v1/jobs")) == (401, "unauthenticated")
        headers = {**browser.csrf, "Origin": "https://testserver"}  # a proxy speaks https
        assert code(planted.post("/v1/jobs", json={"spec": SPEC}, headers=headers)) == (401, "unauthenticated")

    def test_the_text_is_not_stored(self, api: Api, browser: Browser) -> None:
        with api.database.read() as session:
            [row] = session.scalars(select(BrowserSession)).all()
            assert browser.token not in str(vars(row))

    def test_nothing_but_a_key_will_do(self, api: Api, browser: Browser) -> None:
        nobody = anyone(api)
        assert code(nobody.post("/v1/session")) == (401, "unauthenticated")
        assert code(nobody.post("/v1/session", headers={"Authorization": "Bearer espk_x"})) == (401, "invalid_key")
        assert code(browser.client.post("/v1/session", headers=browser.csrf)) == (401, "unauthenticated")
        with api.database.write() as session:
            keys.revoke_key(session, api.key_id)
        assert code(api.client.post("/v1/session")) == (401, "revoked_key")

    def test_a_text_the_client_chose_is_never_a_session(self, api: Api) -> None:
        """Session fixation: whoever planted a cookie learns nothing of the session that begins with it."""
        planted = "A" * 43
        client = anyone(api, espalier_session=planted)
        assert code(client.get("/v1/jobs")) == (401, "session_ended")
        given = client.post("/v1/session", headers={"Authorization": f"Bearer {api.key}"}).headers["Set-Cookie"]
        assert planted not in given
        attacker = anyone(api, espalier_session=planted)
        assert code(attacker.get("/v1/jobs")) == (401, "session_ended")

    def test_anew_ends_the_session_of_before(self, api: Api, browser: Browser) -> None:
        old = browser.token
        browser.client.post("/v1/session", headers={"Authorization": f"Bearer {api.key}"})
        assert browser.get("/v1/jobs").status_code == 200
        assert code(anyone(api, espalier_session=old).get("/v1/jobs")) == (401, "session_ended")

    def test_a_key_has_so_many_sessions_at_once(
        self, api: Api, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "OF_ONE_KEY", 3)
        for _ in range(service.OF_ONE_KEY):
            last = Browser(api, api.key)
        with api.database.read() as session:
            assert len(session.scalars(select(BrowserSession)).all()) == service.OF_ONE_KEY
        assert code(browser.get("/v1/jobs")) == (401, "session_ended")
        assert last.get("/v1/jobs").status_code == 200


class TestTheEnd:
    def test_by_signing_out_wherever_the_cookie_is(self, api: Api, browser: Browser) -> None:
        copy = anyone(api, espalier_session=browser.token)
        assert copy.get("/v1/jobs").status_code == 200
        answer = browser.client.delete("/v1/session", headers=browser.csrf)
        assert answer.status_code == 204
        assert "Max-Age=0" in answer.headers["Set-Cookie"]
        assert code(copy.get("/v1/jobs")) == (401, "session_ended")

    def test_by_its_time(self, api: Api, browser: Browser) -> None:
        with api.database.write() as session:
            session.execute(update(BrowserSession).values(expires_at=now_ms() - 1))
        assert code(browser.get("/v1/jobs")) == (401, "session_ended")
        assert code(browser.get("/v1/session")) == (401, "session_ended")
        Browser(api, api.key)
        with api.database.read() as session:
            assert len(session.scalars(select(BrowserSession)).all()) == 1  # what ended is removed

    def test_with_its_key(self, api: Api, browser: Browser) -> None:
        with api.database.write() as session:
            keys.revoke_key(session, api.key_id)
        assert code(browser.get("/v1/jobs")) == (401, "revoked_key")

    def test_with_the_keys_time(self, api: Api) -> None:
        text, key_id, _ = make_key(api.services, "ours", expires_days=1)
        with api.database.write() as session:
            soon = session.scalar(select(now_ms())) + 60_000
            session.execute(update(ApiKey).where(ApiKey.id == key_id).values(expires_at=soon))
        browser = Browser(api, text)
        assert browser.get("/v1/session").json()["expires_at"] == iso(soon)
        with api.database.write() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key_id).values(expires_at=now_ms()))
        assert code(browser.get("/v1/jobs")) == (401, "expired_key")


@on_sqlite
class TestWhatItMay:
    def test_as_much_as_its_key(self, api: Api) -> None:
        text, _, _ = make_key(api.services, "ours", scopes=("jobs:read",))
        browser = Browser(api, text)
        assert browser.get("/v1/jobs").status_code == 200
        assert code(browser.client.post("/v1/jobs", json={"spec": SPEC}, headers=browser.csrf)) == (
            403,
            "missing_scope",
        )

    def test_no_other_tenants(self, api: Api, foreign: httpx2.Headers) -> None:
        job = api.succeeded()
        browser = Browser(api, foreign["Authorization"].partition(" ")[2])
        sweep = api.client.post("/v1/sweeps", json={"spec": SPEC, "grid": {"/seed": [1, 2]}}).json()
        for path, operations in document()["paths"].items():
            if "{job_id}" in path or "{sweep_id}" in path:
                for method in operations:
                    where = path.replace("{job_id}", job["id"]).replace("{path}", "README.md")
                    where = where.replace("{sweep_id}", sweep["id"])
                    body = {"labels": {}} if method == "patch" else None
                    if (method, path) == ("post", "/v1/jobs/{job_id}/publications"):
                        body = {"to": "s3", "credentials": "models", "path": "a"}
                    answer = browser.client.request(method, where, json=body, headers=browser.csrf)
                    assert answer.status_code == 404, (method, path)
        for path in ("/v1/jobs", "/v1/jobs?search=mask", "/v1/sweeps", "/v1/models?source=job"):
            assert browser.get(path).json()["data"] == [], path
        assert api.get(job).json() == job

    def test_no_cache_takes_one_sessions_answer_for_anothers(self, api: Api, browser: Browser) -> None:
        job, other = api.succeeded(), api.succeeded()
        sweep = api.client.post("/v1/sweeps", json={"spec": SPEC, "grid": {"/seed": [1, 2]}}).json()
        for path, operations in document()["paths"].items():
            if "get" not in operations or not path.startswith("/v1") or "/v1/session" in path or "webhook" in path:
                continue
            where = path.replace("{job_id}", job["id"]).replace("{path}", "README.md")
            where = where.replace("{sweep_id}", sweep["id"]).replace("{model_id}", "bookworm-7m")
            where += f"?job={job['id']}&job={other['id']}" if path == "/v1/compare" else ""
            answer = browser.get(where.replace("{tenant_id}", api.tenant_id))
            assert answer.status_code < 300 or path.endswith("pareto"), (where, answer.text)
            varies = answer.headers.get("Vary", "") if answer.status_code == 200 else "Cookie"
            assert "Cookie" in varies or answer.headers["Cache-Control"] == "no-store", path

    def test_a_key_that_is_sent_too_comes_first(self, api: Api, browser: Browser, foreign: httpx2.Headers) -> None:
        api.submit()
        assert len(browser.get("/v1/jobs").json()["data"]) == 1
        assert browser.client.get("/v1/jobs", headers=foreign).json()["data"] == []
        assert browser.client.post("/v1/jobs", json={"spec": SPEC}, headers=foreign).status_code == 202
        assert browser.client.get("/v1/session", headers=foreign).status_code == 404
        assert browser.client.delete("/v1/session", headers=foreign).status_code == 404

    def test_follow_events_as_a_browsers_event_source_does(self, api: Api, browser: Browser) -> None:
        job = api.submit()
        api.post(job, "cancel")
        answer = browser.client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
        assert [line for line in answer.text.splitlines() if line.startswith("event:")][-1] == "event: end"


def changing() -> list[tuple[str, str]]:
    """Every operation that may change something, by its method and path."""
    return [
        (method, path)
        for path, operations in document()["paths"].items()
        for method in operations
        if path.startswith("/v1") and method not in ("get", "head")
    ]


@on_sqlite
class TestOtherSites:
    """A page of another site that makes the browser ask, cookie included."""

    def test_change_nothing(self, api: Api, browser: Browser) -> None:
        job = api.submit()
        for method, path in changing():
            self.refused(api, browser, job, method, path)
        assert api.get(job).json() == job
        assert len(api.client.get("/v1/jobs").json()["data"]) == 1
        assert browser.get("/v1/session").status_code == 200

    def refused(self, api: Api, browser: Browser, job: dict[str, Any], method: str, path: str) -> None:
        where = path.replace("{job_id}", job["id"]).replace("{sweep_id}", "swp_" + "0" * 32)
        body: Any = {"labels": {"a": "b"}} if method == "patch" else {"spec": SPEC}
        sent = {"json": body} if method in ("post", "patch") and not path.endswith(("cancel", "retry")) else {}
        wrong: list[dict[str, str]] = [
            {},
            {"X-CSRF-Token": ""},
            {"X-CSRF-Token": "0" * 64},
            {**browser.csrf, "X-CSRF-Token": browser.csrf["X-CSRF-Token"][:-1]},
        ]
        for headers in wrong:
            assert code(browser.client.request(method, where, headers=headers, **sent)) == (403, "csrf_token")
        for forged in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "none"},
            {"Sec-Fetch-Site": "", "Origin": "http://testserver"},
        ):
            answer = browser.client.request(method, where, headers={**browser.csrf, **forged}, **sent)
            assert code(answer) == (403, "cross_origin"), forged
        token = {"X-CSRF-Token": browser.csrf["X-CSRF-Token"]}
        for origin in ("https://evil.example", "null", "http://testserver.evil.example", "http://testserver:81", ""):
            answer = browser.client.request(method, where, headers={**token, "Origin": origin}, **sent)
            assert code(answer) == (403, "cross_origin"), origin

    def test_one_sessions_token_is_not_anothers(self, api: Api, browser: Browser) -> None:
        other = Browser(api, api.key)
        assert other.csrf != browser.csrf
        assert code(browser.client.post("/v1/jobs", json={"spec": SPEC}, headers=other.csrf)) == (403, "csrf_token")
        assert browser.client.post("/v1/jobs", json={"spec": SPEC}, headers=browser.csrf).status_code == 202

    def test_sign_nobody_in(self, api: Api) -> None:
        """It takes a header that no form and no other site's script can send without being asked first."""
        answer = anyone(api).post("/v1/session", data={"key": api.key}, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 401
        assert "Set-Cookie" not in answer.headers
        preflight = anyone(api).options(
            "/v1/session",
            headers={
                "Origin": "https://evil.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )
        assert "Access-Control-Allow-Origin" not in preflight.headers

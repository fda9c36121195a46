"""Publications: what is asked for, when it is done, and by whom; to a bucket, resumed, idempotent, without a secret."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import obstore
import pytest
from pydantic import BaseModel

from app.publications.contract import Publisher, PublishFailure
from app.publications.credentials import BadCredentials, Credentials
from app.publications.deliverer import WAITS_S, without
from app.publications.to import hub, s3
from app.signing.check import check
from tests.helpers.api import FILES, SPEC, Api, judged, make_key, with_manifest
from tests.helpers.conformity import document
from tests.helpers.publishing import (
    ON_SQLITE,
    SECRET,
    Bucket,
    all_due,
    asked,
    bucket_of,
    deliverer,
    of,
    publish,
    set_up,
)

RESULT = with_manifest({**FILES, "deep/er/config.json": b"{}"})
OTHER = with_manifest({"model.safetensors": b"other weights", "stale.safetensors": b"more of them"})


@pytest.fixture
def bucket(api: Api, s3_endpoint: str) -> Bucket:
    return bucket_of(api, s3_endpoint)


def by_outcome(api: Api) -> dict[str, int]:
    """Of all publications, by outcome, as metrics have them."""
    found = re.findall(
        r'espalier_publication_try_seconds_count\{outcome="(\w+)"\} (\S+)', api.client.get("/metrics").text
    )
    return {outcome: int(float(count)) for outcome, count in found}


class TestStates:
    def test_asked_for_with_the_job_it_is_done_when_the_job_has_succeeded(self, api: Api, bucket: Bucket) -> None:
        job = api.submit(publish=[asked(), asked("c", gates="any")])
        assert [each["state"] for each in job["publications"]] == ["waiting", "waiting"]
        assert api.get(job).json() == job
        assert not deliverer(api).step()
        before = api.get(job).headers["ETag"]
        api.succeed(api.claim(), files=RESULT)
        assert api.get(job).headers["ETag"] != before
        assert [each["state"] for each in of(api, job)] == ["pending", "pending"]
        assert "espalier_publications_pending 2.0" in api.client.get("/metrics").text
        assert by_outcome(api) == {"published": 0, "failed": 0, "given_up": 0}
        work = deliverer(api)
        assert work.step()
        assert work.step()
        assert not work.step()
        first, second = of(api, job)
        assert (first["state"], first["asked_by"], first["tries"]) == ("published", "test", 1)
        assert first["result"]["location"] == f"s3://{bucket.name}/base/ours/a/b"
        digest = hashlib.sha256(RESULT["manifest.json"]).hexdigest()
        assert first["result"] == second["result"] | {"location": first["result"]["location"]}
        assert first["result"]["revision"] == f"sha256:{digest}"
        assert first["progress"]["done"] == first["progress"]["total"] > 0
        assert first["done_at"] is not None
        events = api.get(job, "/events").json()["data"]
        assert [e["data"]["state"] for e in events if e["type"] == "publication"] == ["published", "published"]
        assert api.get(job).json()["status"] == "succeeded"
        assert by_outcome(api) == {"published": 2, "failed": 0, "given_up": 0}

    @ON_SQLITE
    def test_what_is_there_is_the_result_and_is_verified(self, api: Api, bucket: Bucket, tmp_path: Path) -> None:
        job = api.succeeded(RESULT, publish=[asked()])
        deliverer(api).step()
        for path, content in bucket.files("base/ours/a/b").items():
            (tmp_path / "there" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "there" / path).write_bytes(content)
        found = check(tmp_path / "there", api.services.signing.published(), job_id=job["id"], tenant="ours")
        assert (found.findings, found.files) == ([], len(RESULT) - 1)

    def test_gates_withhold_it(self, api: Api, bucket: Bucket) -> None:
        for verdict, states in (
            ("fail", ["withheld", "pending"]),
            ("inconclusive", ["withheld", "pending"]),
            ("pass", ["pending", "pending"]),
        ):
            job = api.submit(publish=[asked(verdict), asked("any", gates="any")])
            api.succeed(api.claim(), judged(verdict), files=RESULT)  # type: ignore[arg-type]
            assert [each["state"] for each in of(api, job)] == states
            answer = publish(api, job, asked("later"))
            if verdict != "pass":
                assert (answer.status_code, answer.json()["code"]) == (409, "gates_not_passed")
                assert publish(api, job, asked("later", gates="any")).status_code == 202
            else:
                assert answer.status_code == 202

    def test_a_job_that_fails_publishes_nothing_until_a_retry_succeeds(self, api: Api, bucket: Bucket) -> None:
        job = api.submit(publish=[asked()])
        api.fail(api.claim())
        assert of(api, job)[0]["state"] == "waiting"
        assert publish(api, job, asked()).json()["code"] == "invalid_transition"
        api.post(job, "retry")
        api.succeed(api.claim(), files=RESULT)
        assert of(api, job)[0]["state"] == "pending"

    def test_afterwards_by_hand_and_the_same_twice_is_one_while_it_waits(self, api: Api, bucket: Bucket) -> None:
        job = api.succeeded(RESULT)
        first, again = publish(api, job, asked()), publish(api, job, asked())
        assert (first.status_code, again.status_code) == (202, 200)
        assert again.json() == first.json()
        assert publish(api, job, asked("other")).status_code == 202
        assert len(of(api, job)) == 2

    @ON_SQLITE
    def test_the_same_result_again_changes_nothing(self, api: Api, bucket: Bucket) -> None:
        job = api.succeeded(RESULT, publish=[asked()])
        work = deliverer(api)
        work.step()
        before = bucket.written("base/ours/a/b")
        publish(api, job, asked())
        work.step()
        first, again = of(api, job)
        assert (first["result"]["changed"], again["result"]["changed"]) == (True, False)
        assert {**first["result"], "changed": False} == again["result"]
        assert bucket.written("base/ours/a/b") == before

    @ON_SQLITE
    def test_another_result_gives_way_only_if_asked(self, api: Api, bucket: Bucket) -> None:
        work = deliverer(api)
        api.succeeded(OTHER, publish=[asked()])
        work.step()
        job = api.succeeded(RESULT, publish=[asked()])
        work.step()
        (refused,) = of(api, job)
        assert (refused["state"], refused["error"]["code"]) == ("failed", "destination_taken")
        assert "`replace`" in refused["error"]["hint"]
        assert "stale.safetensors" in bucket.files("base/ours/a/b")
        assert api.get(job).json()["status"] == "succeeded"
        publish(api, job, asked(replace=True))
        work.step()
        assert of(api, job)[1]["state"] == "published"
        assert bucket.files("base/ours/a/b").keys() == RESULT.keys() | {"manifest.jws"}

    @ON_SQLITE
    def test_a_place_that_is_not_there_and_then_is(self, api: Api, bucket: Bucket) -> None:
        missing = Bucket(bucket.endpoint)
        set_up(api, missing.place(api))
        job = api.succeeded(RESULT, publish=[asked()])
        deliverer(api).step()
        (failed,) = of(api, job)
        assert (failed["state"], failed["error"]["code"]) == ("failed", "destination_missing")
        path = f"/v1/jobs/{job['id']}/publications/{failed['id']}/retry"
        missing.make()
        assert api.client.post(path).json()["state"] == "pending"
        deliverer(api).step()
        (published,) = of(api, job)
        assert (published["state"], published["error"]) == ("published", None)
        assert api.client.post(path).json()["code"] == "invalid_transition"
        assert api.client.post(path.replace(failed["id"], "pub_" + "0" * 32)).status_code == 404

    @ON_SQLITE
    def test_a_place_that_does_not_answer_is_tried_again_for_hours(
        self, api: Api, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3, "RETRIES", {"max_retries": 0})
        set_up(api, bucket.place(api, endpoint="http://127.0.0.1:9"))
        job = api.succeeded(RESULT, publish=[asked()])
        work = deliverer(api)
        for tries in range(1, len(WAITS_S) + 2):
            assert work.step()
            assert not work.step()  # it waits
            (found,) = of(api, job)
            assert (found["tries"], found["error"]["code"]) == (tries, "destination_unreachable")
            assert found["state"] == ("pending" if tries <= len(WAITS_S) else "failed")
            all_due(api)
        assert not work.step()
        assert by_outcome(api) == {"published": 0, "failed": len(WAITS_S), "given_up": 1}

    @ON_SQLITE
    @pytest.mark.parametrize("gone", [False, True])
    def test_a_result_that_was_damaged_is_not_published(self, api: Api, bucket: Bucket, gone: bool) -> None:
        job = api.succeeded(RESULT, publish=[asked()])
        (weights,) = Path(api.services.settings.home / "artifacts").rglob("model.safetensors")
        weights.unlink() if gone else weights.write_bytes(b"\1" + weights.read_bytes()[1:])
        deliverer(api).step()
        (found,) = of(api, job)
        assert (found["state"], found["error"]["code"]) == ("failed", "artifact_lost")
        assert not {"model.safetensors", "manifest.json"} & bucket.files("base/ours/a/b").keys()


KILLED = """
import os, signal, sys
import obstore
from app.db import Database
from app.publications.credentials import Credentials
from app.publications.deliverer import Deliverer
from app.settings import Settings
from app.signing.keys import KeyRing
from app.storage import ArtifactStore

open_writer, count = obstore.open_writer, 0

def counted(*args, **kwargs):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return open_writer(*args, **kwargs)

obstore.open_writer = counted
settings = Settings()
keys, credentials = KeyRing(settings.signing_keys, make=False), Credentials(settings.credentials)
Deliverer(Database(settings.database_url), ArtifactStore(settings.artifacts_url), credentials, keys).step()
"""


class TestCrashes:
    def test_killed_it_goes_on_with_what_is_missing(
        self, api: Api, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = api.succeeded(RESULT, publish=[asked()])
        settings = api.services.settings
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
            "ESPALIER_HOME": str(settings.home),
            "ESPALIER_DATABASE_URL": settings.database_url,
        }
        done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        (found,) = of(api, job)
        assert (found["state"], found["tries"]) == ("running", 1)
        there = bucket.written("base/ours/a/b")
        assert len(there) == 2
        assert not deliverer(api).step()  # its lease
        all_due(api)
        sent: list[str] = []
        real = obstore.open_writer

        def counted(store: Any, path: str, **how: Any) -> Any:
            sent.append(path)
            return real(store, path, **how)

        monkeypatch.setattr(obstore, "open_writer", counted)
        assert deliverer(api).step()
        (found,) = of(api, job)
        assert (found["state"], found["tries"], found["result"]["changed"]) == ("published", 2, True)
        assert len(sent) == len(RESULT) + 1 - 2
        assert sent[-1] == "manifest.json"
        assert there.items() <= bucket.written("base/ours/a/b").items()

    @ON_SQLITE
    def test_killed_while_another_result_gives_way_nothing_of_that_is_left(
        self, api: Api, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work = deliverer(api)
        api.succeeded(OTHER, publish=[asked()])
        work.step()
        job = api.succeeded(RESULT, publish=[asked(replace=True)])

        def killed(*_: Any, **__: Any) -> Any:
            raise SystemExit

        with monkeypatch.context() as patched:
            patched.setattr(obstore, "open_writer", killed)
            with pytest.raises(SystemExit):
                work.step()
        there = bucket.files("base/ours/a/b")
        assert "manifest.json" not in there  # nobody takes it for a whole result
        assert "stale.safetensors" in there
        all_due(api)
        work.step()
        assert of(api, job)[0]["state"] == "published"
        assert bucket.files("base/ours/a/b").keys() == RESULT.keys() | {"manifest.jws"}

    def test_one_that_was_frozen_changes_nothing(
        self, api: Api, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its lease ends while it publishes, and another takes it up."""
        job = api.succeeded(RESULT, publish=[asked()])
        real = s3.PUBLISHER.publish

        def frozen(*args: Any) -> Any:
            object.__setattr__(s3.PUBLISHER, "publish", real)
            all_due(api)
            assert deliverer(api).step()
            raise PublishFailure("late", "it comes too late", "")

        object.__setattr__(s3.PUBLISHER, "publish", frozen)
        try:
            assert deliverer(api).step()
        finally:
            object.__setattr__(s3.PUBLISHER, "publish", real)
        (found,) = of(api, job)
        assert (found["state"], found["tries"], found["error"]) == ("published", 2, None)

    def test_of_a_job_that_is_deleted_meanwhile_nothing_is_left(self, api: Api, bucket: Bucket) -> None:
        job = api.succeeded(RESULT, publish=[asked()])
        real = s3.PUBLISHER.publish

        def late(target: Any, params: Any, result: Any, secrets: Any) -> Any:
            assert api.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
            return real(target, params, result, secrets)

        object.__setattr__(s3.PUBLISHER, "publish", late)
        try:
            assert deliverer(api).step()
        finally:
            object.__setattr__(s3.PUBLISHER, "publish", real)
        assert not deliverer(api).step()
        assert api.get(job).status_code == 404

    def test_the_lease_is_renewed_and_a_publisher_that_lost_it_stops(self, api: Api, bucket: Bucket) -> None:
        job = api.succeeded(RESULT, publish=[asked()])
        real = s3.PUBLISHER.publish

        def slow(target: Any, params: Any, result: Any, secrets: Any) -> Any:
            result.done(7)
            _until(lambda: of(api, job)[0]["progress"] == {"done": 7, "total": of(api, job)[0]["progress"]["total"]})
            api.client.delete(f"/v1/jobs/{job['id']}")
            _until(lambda: _raises(lambda: result.done(1)))
            return real(target, params, result, secrets)

        object.__setattr__(s3.PUBLISHER, "publish", slow)
        try:
            assert deliverer(api, beat_s=0.05).step()
        finally:
            object.__setattr__(s3.PUBLISHER, "publish", real)
        assert bucket.files("base/ours/a/b") == {}

    def test_a_process_that_is_to_end_gives_it_back_at_once(self, api: Api, bucket: Bucket) -> None:
        job = api.succeeded(RESULT, publish=[asked()])
        stop, real = threading.Event(), s3.PUBLISHER.publish

        def slow(target: Any, params: Any, result: Any, secrets: Any) -> Any:
            stop.set()
            _until(lambda: _raises(lambda: result.done(1)))
            return real(target, params, result, secrets)

        object.__setattr__(s3.PUBLISHER, "publish", slow)
        try:
            deliverer(api, beat_s=0.05).run(stop)
        finally:
            object.__setattr__(s3.PUBLISHER, "publish", real)
        assert [(each["state"], each["tries"], each["error"]) for each in of(api, job)] == [("pending", 0, None)]
        assert deliverer(api).step()
        assert of(api, job)[0]["state"] == "published"

    def test_tenants_take_turns(self, api: Api, bucket: Bucket) -> None:
        set_up(api, bucket.place(api, tenants=["*"]))
        for number in range(3):
            api.succeeded(RESULT, publish=[asked(f"n{number}")])
        theirs = make_key(api.services, "theirs")[0]
        api.client.headers["Authorization"] = f"Bearer {theirs}"
        job = api.succeeded(RESULT, publish=[asked("theirs")])
        work, real = deliverer(api), s3.PUBLISHER.publish
        order = []

        def nested(target: Any, params: Any, result: Any, secrets: Any) -> Any:
            order.append(params.path)
            if len(order) == 1:
                assert work.step()
            return real(target, params, result, secrets)

        object.__setattr__(s3.PUBLISHER, "publish", nested)
        try:
            assert work.step()
        finally:
            object.__setattr__(s3.PUBLISHER, "publish", real)
        assert order == ["n0", "theirs"]
        assert of(api, job)[0]["result"]["location"].endswith("/base/theirs/theirs")


class Echo(BaseHTTPRequestHandler):
    """A place that refuses, and says all that it was told."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>AccessDenied</Code><Message>{self.headers}{SECRET}</Message></Error>".encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class TestSecrets:
    @ON_SQLITE
    def test_stand_nowhere(self, api: Api, bucket: Bucket, echo: str, capfd: pytest.CaptureFixture[str]) -> None:
        """One publication succeeds, one is refused by a place that repeats what it is told, one crashes."""
        set_up(api, bucket.place(api), bucket.place(api, "refusing", endpoint=echo))
        body = [asked(), asked("x", credentials="refusing"), asked("crash")]
        job = api.succeeded(RESULT, publish=body)
        real = s3.PUBLISHER.publish

        def crashing(target: Any, params: Any, result: Any, secrets: Any) -> Any:
            if params.path == "crash":
                raise RuntimeError(f"POST https://u:{SECRET}@place.example/?token={SECRET}: {secrets}")
            return real(target, params, result, secrets)

        object.__setattr__(s3.PUBLISHER, "publish", crashing)
        try:
            work = deliverer(api)
            while work.step():
                pass
        finally:
            object.__setattr__(s3.PUBLISHER, "publish", real)
        states = {each["params"]["path"]: each for each in of(api, job)}
        assert states["a/b"]["state"] == "published"
        assert states["x"]["error"]["code"] == "publish_refused"
        assert states["crash"]["error"]["code"] == "publisher_crashed"
        said = [api.get(job, path).text for path in ("", "/events", "/publications", "/logs", "/report", "/attempts")]
        said += [api.client.get("/v1/credentials").text, json.dumps(document()), *capfd.readouterr()]
        said += [content.decode(errors="replace") for content in bucket.files("base").values()]
        with api.database.rows() as connection:
            for table in ("jobs", "publications", "events", "reports", "webhook_deliveries", "idempotency_keys"):
                said += [str(row) for row in connection.exec_driver_sql(f"select * from {table}")]
        home = api.services.settings.home
        said += [
            each.read_bytes().decode(errors="replace")
            for each in home.rglob("*")
            if each.is_file() and each.name != "secret.txt"
        ]
        assert sum(len(each) for each in said) > 10_000
        assert [each for each in said if SECRET in each] == []

    def test_in_the_file_of_names_a_secret_is_refused_and_not_repeated(self, tmp_path: Path) -> None:
        for line in (
            f'secret_access_key = "{SECRET}"',
            f'secret_access_key = {{text = "{SECRET}"}}',
            "secret_access_key = {}",
            'secret_access_key = {env = "A", file = "B"}',
            'url = "https://elsewhere"',
            "tenants = []",
            'to = "nowhere"',
            'more = "x"',
            "[",
        ):
            fields = {
                "to": '"s3"',
                "tenants": '["a"]',
                "url": '"s3://models/x"',
                "access_key_id": '{env = "A"}',
                "secret_access_key": '{env = "A"}',
            }
            key, _, value = line.partition(" = ")
            fields[key] = value
            path = tmp_path / "credentials.toml"
            path.write_text("[models]\n" + "\n".join(f"{k} = {v}" for k, v in fields.items()))
            with pytest.raises(BadCredentials, match=r"credentials\.toml") as caught:
                Credentials(path)
            assert SECRET not in str(caught.value)

    @ON_SQLITE
    def test_a_secret_that_cannot_be_read_is_said_and_waited_for(self, api: Api, bucket: Bucket) -> None:
        set_up(api, bucket.place(api, secret_access_key={"env": "ESPALIER_TEST_NOT_SET"}))
        job = api.succeeded(RESULT, publish=[asked()])
        deliverer(api).step()
        (found,) = of(api, job)
        assert (found["state"], found["error"]["code"]) == ("pending", "credentials_unreadable")
        assert "ESPALIER_TEST_NOT_SET" in found["error"]["hint"]

    def test_are_cut_out_of_texts(self) -> None:
        assert without(f"a {SECRET} b", [SECRET]) == "a *** b"
        assert without("PUT https://u:p@h/x?sig=1 failed", []) == "PUT https://***@h/x?… failed"
        assert len(without("x" * 10_000, [])) == 500


@ON_SQLITE
class TestWhoMay:
    def test_only_with_credentials_of_the_tenant_and_only_what_they_allow(self, api: Api, bucket: Bucket) -> None:
        set_up(
            api,
            bucket.place(api),
            bucket.place(api, "theirs", tenants=["theirs"]),
            bucket.place(api, "everybodys", tenants=["*"]),
        )
        assert api.client.get("/v1/credentials").json()["data"] == [
            {"name": "everybodys", "to": "s3"},
            {"name": "models", "to": "s3"},
        ]
        job = api.succeeded(RESULT)
        for path, body, pointer in (
            ("/v1/jobs", {"spec": SPEC, "publish": [asked(), asked(credentials="theirs")]}, "/publish/1/credentials"),
            (f"/v1/jobs/{job['id']}/publications", asked(credentials="theirs"), "/credentials"),
            (f"/v1/jobs/{job['id']}/publications", asked(credentials="nobodys"), "/credentials"),
        ):
            answer = api.client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (422, "no_such_credentials")
            (error,) = answer.json()["errors"]
            assert error["pointer"] == pointer
            assert error["allowed"] == ["everybodys", "models"]
        assert of(api, job) == []

    def test_nothing_else_can_be_said(self, api: Api, bucket: Bucket) -> None:
        job = api.succeeded(RESULT)
        for change in (
            {"endpoint": "http://169.254.169.254"},
            {"url": "s3://elsewhere"},
            {"access_key_id": "x"},
            {"path": "../a"},
            {"path": "a//b"},
            {"path": "/a"},
            {"path": ""},
            {"path": "a/.."},
            {"path": "a\nb"},
            {"path": "x" * 301},
            {"to": "ftp"},
            {"gates": "none"},
        ):
            assert publish(api, job, {**asked(), **change}).status_code == 422, change

    def test_mistakes_are_named_where_they_are(self, api: Api, bucket: Bucket) -> None:
        """By pointers into what was sent, in which no kind of place is a field."""
        job = api.succeeded(RESULT)
        for change, pointer, said in (
            ({"path": "../a"}, "/path", "pattern"),
            ({"to": "s4"}, "/to", "choose one of hub, mlflow, s3"),
            ({"to": "mlflo"}, "/to", "did you mean `mlflow`"),
            ({"to": None}, "/to", "s3"),
            ({"replace": "yes"}, "/replace", "boolean"),
            ({"replase": True}, "/replase", "did you mean `replace`"),
        ):
            body = {**asked(), **change}
            for answer, where in (
                (publish(api, job, body), pointer),
                (api.client.post("/v1/jobs", json={"spec": SPEC, "publish": [asked(), body]}), f"/publish/1{pointer}"),
            ):
                errors = answer.json()["errors"]
                assert [each["pointer"] for each in errors] == [where], change
                assert said in errors[0]["detail"], change
        answer = publish(api, job, {"credentials": "models"})
        assert answer.json()["errors"][0]["pointer"] == "/to"

    def test_taken_away_meanwhile(self, api: Api, bucket: Bucket) -> None:
        job = api.succeeded(RESULT, publish=[asked()])
        set_up(api, bucket.place(api, tenants=["theirs"]))
        deliverer(api).step()
        assert of(api, job)[0]["error"]["code"] == "credentials_refused"
        assert bucket.files("base") == {}

    def test_every_route_asks_for_its_scope_and_a_foreign_job_is_a_missing_one(
        self, api: Api, bucket: Bucket, foreign: httpx2.Headers
    ) -> None:
        from app.keys.scopes import SCOPES

        set_up(api, bucket.place(api, tenants=["*"]))
        job = api.succeeded(RESULT, publish=[asked()])
        (made,) = of(api, job)
        ids = {"job_id": job["id"], "publication_id": made["id"]}
        missing = {"job_id": "job_" + "0" * 32, "publication_id": "pub_" + "0" * 32}
        routes = [
            (method, path)
            for path, operations in document()["paths"].items()
            for method, operation in operations.items()
            if operation["tags"] == ["publications"]
        ]
        assert len(routes) == 4
        for method, path in routes:
            scope = "jobs:read" if (method, path) == ("get", "/v1/jobs/{job_id}/publications") else "publish"
            body = asked("new") if method == "post" else None
            others = tuple(each for each in SCOPES if each != scope)
            keyed = {"Authorization": f"Bearer {make_key(api.services, 'ours', others)[0]}"}
            refused = api.client.request(method, path.format(**ids), json=body, headers=keyed)
            assert (refused.status_code, refused.json()["allowed"]) == (403, [scope]), (method, path)
            if "{job_id}" in path:
                answers = [
                    api.client.request(method, path.format(**which), json=body, headers=foreign)
                    for which in (ids, missing)
                ]
                theirs, none = ({**each.json(), "request_id": "", "instance": ""} for each in answers)
                assert theirs == none
                assert theirs["status"] == 404
        writer = {"Authorization": f"Bearer {make_key(api.services, 'ours', ('jobs:write',))[0]}"}
        answer = api.client.post("/v1/jobs", json={"spec": SPEC, "publish": [asked()]}, headers=writer)
        assert (answer.status_code, answer.json()["allowed"]) == (403, ["publish"])
        assert api.client.post("/v1/jobs", json={"spec": SPEC}, headers=writer).status_code == 202
        assert [each["id"] for each in of(api, job)] == [made["id"]]

    def test_a_job_has_so_many(self, api: Api, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        from app.publications import service

        monkeypatch.setattr(service, "MOST", 2)
        job = api.succeeded(RESULT)
        answers = [publish(api, job, asked(f"n{number}")) for number in range(3)]
        assert [each.status_code for each in answers] == [202, 202, 422]
        assert answers[-1].json()["code"] == "too_many_publications"
        too_many = [asked(f"n{number}") for number in range(11)]
        assert api.client.post("/v1/jobs", json={"spec": SPEC, "publish": too_many}).status_code == 422


PLUGIN = """
from typing import Literal
from app.publications.contract import Params, Published, Publisher, Target

class ToDisk(Params):
    to: Literal["disk"]

class Disk(Target):
    to: Literal["disk"]
    folder: str

PUBLISHER = Publisher("disk", Disk, ToDisk, lambda target, params, result, secrets: Published("there", "1", True))
"""
SHOWN = """
import json
from pydantic import TypeAdapter
from app.publications.request import PublishList, read
publish = TypeAdapter(PublishList).json_schema()["items"]
made = type(read({"to": "disk", "credentials": "x"})).__name__
print(json.dumps([sorted(publish["discriminator"]["mapping"]), made]))
"""


def test_a_package_brings_a_publisher_of_its_own(tmp_path: Path) -> None:
    info = tmp_path / "espalier_disk-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: espalier-disk\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[espalier.publishers]\ndisk = espalier_disk:PUBLISHER\n")
    (tmp_path / "espalier_disk.py").write_text(PLUGIN)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ESPALIER_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", SHOWN], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kinds, made = json.loads(done.stdout)
    assert {"disk", "s3"} <= set(kinds)
    assert made == "ToDisk"


def test_every_publisher_keeps_the_contract() -> None:
    from app.publications.registry import publishers

    for name, publisher in publishers().items():
        assert isinstance(publisher, Publisher)
        for model in (publisher.params, publisher.target):
            assert issubclass(model, BaseModel)
            assert model.model_json_schema()["properties"]["to"]["const"] == name
            assert model.model_config["extra"] == "forbid"


def _until(condition: Callable[[], bool]) -> None:
    from tests.helpers.api import eventually

    eventually(condition)


def _raises(call: Callable[[], Any]) -> bool:
    from app.publications.contract import Stopped

    try:
        call()
    except Stopped:
        return True
    return False


def test_the_name_of_a_tenant_is_one_folder_and_no_pattern() -> None:
    """Of a tenant `a/b` the folder would lie within that of `a`; `*` would be everybody's."""
    keys = {name: {"env": "X"} for name in ("access_key_id", "secret_access_key")}
    bucket = s3.S3Target.model_validate({"to": "s3", "tenants": ["*"], "url": "s3://models/{tenant}", **keys})
    folder = s3.S3Params(to="s3", credentials="c", path="b")
    assert [bucket.refusal(folder, tenant) is None for tenant in ("a", "a/b", "..", "a ")] == [
        True,
        False,
        False,
        False,
    ]
    repositories = {"token": {"env": "X"}, "repositories": ["{tenant}/*"]}
    place = hub.HubTarget.model_validate({"to": "hub", "tenants": ["*"], **repositories})
    wanted = hub.HubParams(to="hub", credentials="c", repository="acme/model")
    found = [place.refusal(wanted, tenant) is None for tenant in ("acme", "*", "acm?", "[a-z]cme", "other")]
    assert found == [True, False, False, False, False]

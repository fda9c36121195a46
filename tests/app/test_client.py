"""The Python client beside the real API: all that it can ask, and how it sees a job's life."""

from __future__ import annotations

import asyncio
import inspect
import re
import runpy
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.testclient import TestClient

import espalier
from app.jobs import fleet
from espalier import AsyncClient, Client
from tests.helpers.api import FILES, GATED, ROOT, SPEC, W1, WEIGHTS, Api, judged, make_key, served
from tests.helpers.conformity import conforming, document

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # it knows nothing of databases
SWEEP = {"spec": SPEC, "grid": {"/prune/sparsity": [0.4, 0.5]}}


@pytest.fixture
def live(app: FastAPI) -> Iterator[tuple[Client, Api]]:
    """A client of the app behind a real socket, and the worker's hands."""
    with served(app) as url:
        services = app.state.services
        text, key_id, tenant_id = make_key(services, "ours")
        with services.database.write() as session:
            fleet.make_known(session, W1, ttl_s=600)
        with Client(url, text) as client:
            client._http.event_hooks["response"].append(conforming)
            yield client, Api(TestClient(app), services, text, key_id, tenant_id)


NOT_OF_THE_CLIENT = {
    *("GET /v1/tenants", "GET /v1/tenants/{tenant_id}", "PATCH /v1/tenants/{tenant_id}"),  # an operator's
    *("GET /v1/keys", "POST /v1/keys", "POST /v1/keys/{key_id}/revoke"),
    *("GET /v1/session", "POST /v1/session", "DELETE /v1/session"),  # a browser's
    "HEAD /v1/jobs/{job_id}/artifacts/{path}",
    "GET /v1/jobs/{job_id}/publications",  # they are in the job
}


@on_sqlite
def test_it_asks_for_all_there_is_for_a_tenant(live: tuple[Client, Api], tmp_path: Path) -> None:
    client, api = live
    asked, templates = set[str](), document()["paths"]

    def note(request: httpx2.Request) -> None:
        (path,) = [path for path in templates if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.url.path)]
        asked.add(f"{request.method} {path}")

    client._http.event_hooks["request"].append(note)

    assert client.me().tenant.id == api.tenant_id
    assert [worker.name for worker in client.workers()] == [W1.name]
    assert "bookworm-7m" in {model.id for model in client.models()}
    assert any(ability.fits for ability in client.model("bookworm-7m").abilities)
    assert "wanda" in {method.name for stage in client.capabilities().stages for method in stage.methods}

    assert client.plan(SPEC, labels={"a": "b"}).parameters > 0
    job = client.submit(GATED, labels={"team": "search"}, priority=3)
    assert (job.status, job.labels, job.priority, job.ended) == ("queued", {"team": "search"}, 3, False)
    assert job.pause().status == "paused"
    assert job.resume().status == "queued"
    assert job.cancel().status == "cancelled"
    assert job.retry().status == "queued"
    assert job.label({"team": None, "x": "y"}).labels == {"x": "y"}
    held = api.claim()
    api.log(held, 1, "pruning\ndone\n")
    api.succeed(held, judged("pass"))
    assert job.status == "queued"  # nobody has asked
    assert job.wait() is job
    assert (job.status, job.verdict) == ("succeeded", "pass")
    assert job.logs(tail=1) == "done\n"
    assert [line.text for line in job.follow_logs()] == ["pruning", "done"]
    assert [attempt.outcome for attempt in job.attempts()] == ["succeeded"]
    assert [event.type for event in job.events()][-1] == "succeeded"
    assert job.report().metrics[0].ratio == 1.1
    assert job.report_page() == FILES["report.html"]
    assert {file.path for file in job.artifacts()} == FILES.keys()
    paths = job.download(tmp_path)
    assert {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in paths} == FILES
    assert client.job(job.id).raw == job.raw
    assert [each.id for each in client.jobs(labels={"x": "y"}, status=["succeeded", "failed"])] == [job.id]
    assert client.credentials() == []
    with pytest.raises(espalier.InvalidRequest):
        job.publish({"to": "s3", "credentials": "none"})
    with pytest.raises(espalier.NotFound):
        job.retry_publication("pub_01a201bb6ce13078a5210ce45142be09")
    job.delete()
    with pytest.raises(espalier.NotFound):
        job.refresh()

    assert len(client.plan_sweep(SWEEP).children) == 2
    sweep = client.submit_sweep(SWEEP)
    api.succeed(api.claim())
    api.succeed(api.claim())
    assert sweep.wait(timeout=30).counts == {"succeeded": 2}
    assert sweep.csv().startswith("number,")
    assert sweep.pareto(cost="sparsity").cost is not None
    assert b"<html" in sweep.pareto_page()
    assert [each.id for each in client.sweeps()] == [sweep.id]
    children = [child.job_id for child in sweep.children if child.job_id]
    assert [each.path for each in client.compare(children).spec] == ["prune.sparsity"]
    assert client.sweep(sweep.id).cancel().status == "completed"
    sweep.delete()

    hook = client.create_webhook("https://example.org/x", events=["job.failed"])
    assert client.webhook(hook.id).secret == hook.secret is not None
    assert client.rotate_webhook(hook.id).secret != hook.secret
    assert [each.id for each in client.webhooks()] == [hook.id]
    sent = client.test_webhook(hook.id)
    assert [each.id for each in client.deliveries(hook.id)] == [sent.id]
    assert client.redeliver(hook.id, sent.id).message_id == sent.message_id
    assert client.update_webhook(hook.id, enabled=False).enabled is False
    client.delete_webhook(hook.id)

    there = {
        f"{method.upper()} {path}"
        for path, operations in templates.items()
        for method in operations
        if path.startswith("/v1/") and method in ("get", "post", "patch", "delete", "head", "put")
    }
    assert there - asked == NOT_OF_THE_CLIENT


@on_sqlite
def test_lists_go_over_their_pages(live: tuple[Client, Api], monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = live
    made = [client.submit(SPEC, labels={"n": str(n)}).id for n in range(3)]
    assert [job.id for job in client.jobs(sort="created_at")] == made
    first = client.job_page(limit=2, count=True)
    assert ([job.id for job in first.data], first.total) == (made[:0:-1], 3)
    rest = client.job_page(limit=2, cursor=first.next_cursor)
    assert ([job.id for job in rest.data], rest.next_cursor) == (made[:1], None)
    small = client.job_page
    monkeypatch.setattr(client, "job_page", lambda **kwargs: small(**{**kwargs, "limit": 1}))
    assert [job.id for job in client.jobs()] == made[::-1]


@on_sqlite
def test_an_error_says_what_where_and_the_remedy(live: tuple[Client, Api]) -> None:
    client, api = live
    with pytest.raises(espalier.InvalidRequest) as raised:
        client.submit({**SPEC, "score": {"method": "wnada"}})
    error = raised.value
    assert (error.status, error.code, error.field) == (422, "invalid_request", "/spec/score/method")
    assert "did you mean `wanda`?" in error.remedy
    assert "magnitude" in (error.errors[0].allowed or [])
    assert error.request_id
    with pytest.raises(espalier.NotFound):
        client.job("job_01a201bb6ce13078a5210ce45142be09")
    job = client.submit(SPEC)
    with pytest.raises(espalier.Conflict) as conflict:
        job.retry()
    assert "cancel" in conflict.value.problem["allowed"]
    with Client(client.url, "espk_nonsense") as stranger, pytest.raises(espalier.Unauthenticated):
        stranger.me()
    reads = Client(client.url, make_key(api.services, "ours", ("jobs:read",))[0])
    with reads as reader, pytest.raises(espalier.Forbidden, match="jobs:write"):
        reader.submit(SPEC)


@on_sqlite
def test_a_wait_ends_in_time_and_says_how_the_job_ended(live: tuple[Client, Api]) -> None:
    client, api = live
    job = client.submit(SPEC)
    with pytest.raises(espalier.WaitTimeout, match="still queued after 0 s") as raised:
        job.wait(timeout=0)
    assert isinstance(raised.value, TimeoutError)
    api.fail(api.claim())
    with pytest.raises(espalier.JobFailed) as failed:
        job.wait().raise_unless_succeeded()
    assert (failed.value.code, failed.value.remedy) == ("runner_died", "wait")
    job.retry()
    with pytest.raises(espalier.JobCancelled):
        job.cancel().raise_unless_succeeded()


@on_sqlite
def test_changes_are_seen_as_they_come(live: tuple[Client, Api]) -> None:
    client, api = live
    job = client.submit(SPEC)
    seen = []
    for state in job.changes(timeout=60):
        seen.append(state.status)
        if state.status == "queued":
            held = api.claim()
        elif not state.progress:
            api.record(held, ("stage", {"stage": "prune"}))
        elif state.status == "running":
            seen.append(f"{state.progress.done} of {state.progress.total}")
            api.succeed(held)
    assert seen == ["queued", "running", "running", "1 of 8", "succeeded"]


@on_sqlite
def test_two_submissions_under_one_key_are_one_job(live: tuple[Client, Api]) -> None:
    client, _ = live
    assert client.submit(SPEC, idempotency_key="a").id == client.submit(SPEC, idempotency_key="a").id
    assert client.submit(SPEC).id != client.submit(SPEC).id


@on_sqlite
def test_the_asynchronous_client_lives_through_the_same(live: tuple[Client, Api], tmp_path: Path) -> None:
    client, api = live

    async def life() -> None:
        async with AsyncClient(client.url, api.key) as other:
            job = await other.submit(SPEC, labels={"kind": "async"})
            worker = threading.Thread(target=lambda: api.succeed(api.claim()))
            worker.start()
            ended, types = await asyncio.gather(job.wait(timeout=60), _types(job))
            worker.join()
            assert (ended is job, job.status, types[-1]) == (True, "succeeded", "succeeded")
            paths = await job.download(tmp_path)
            assert {path.name: path.read_bytes() for path in paths}["model.safetensors"] == WEIGHTS
            assert [each.id async for each in other.jobs(labels={"kind": "async"})] == [job.id]
            assert [line.text async for line in job.follow_logs()] == []
            sweep = await other.submit_sweep(SWEEP)
            assert (await sweep.cancel()).status == "completed"
            with pytest.raises(espalier.InvalidRequest):
                await other.submit({})

    async def _types(job: espalier.AsyncJob) -> list[str]:
        return [event.type async for event in job.events()]

    asyncio.run(life())


def public(kind: type) -> dict[str, list[str]]:
    """Public methods of ours and their parameters."""
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in inspect.getmembers(kind, callable)
        if not name.startswith("_") and not hasattr(BaseModel, name)
    }


@pytest.mark.parametrize("name", ["Client", "Job", "JobRef", "Sweep", "SweepRef"])
def test_both_clients_are_alike_and_documented(name: str) -> None:
    sync, other = getattr(espalier, name), getattr(espalier, f"Async{name}")
    assert public(sync) == public(other)
    assert all(inspect.getdoc(getattr(sync, method)) for method in public(sync))


def test_the_synchronous_client_is_generated_from_the_other() -> None:
    generator = runpy.run_path(str(ROOT / ".ci/unasync.py"))
    for path, text in generator["modules"]().items():
        assert path.read_text() == text, "run `make docs`"

"""A job that no live worker can take says what it waits for: when it is looked at, in lists, and in a dry run."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.jobs import fleet, repository
from app.jobs.fleet import Largest, Worker
from tests.helpers.api import SPEC, W1, Api
from tests.helpers.job_life import worker

GPUS = {**SPEC, "compute": {"device": "cuda", "devices": 4}}


def known(api: Api, *workers: Worker, ttl_s: float = 60) -> None:
    """These workers are alive, and no other."""
    with api.database.write() as session:
        fleet.make_known(session, W1, ttl_s=-1)
        fleet.forget_silent(session)
        for each in workers:
            fleet.make_known(session, each, ttl_s=ttl_s)


@pytest.mark.parametrize(
    ("largest", "queue", "devices", "said"),
    [
        (Largest(None, None), "any", 1, "there is no live worker"),
        (Largest(1, None), "any", 1, None),
        (Largest(1, None), "any", 2, "no live worker has 2 devices; the largest has 1"),
        (Largest(8, None), "gpu", 1, "no live worker has a GPU"),
        (Largest(8, 2), "gpu", 4, "no live worker has 4 GPUs; the largest has 2"),
        (Largest(8, 4), "gpu", 4, None),
        (Largest(8, 4), "any", 8, None),
    ],
)
def test_what_is_said(largest: Largest, queue: str, devices: int, said: str | None) -> None:
    assert fleet.waiting_for(largest, queue, devices) == said


def test_a_job_says_so_until_a_worker_comes(api: Api) -> None:
    lack = "no live worker has 4 GPUs; the largest has 2"
    known(api, worker("cpu", devices=8), worker("small", "gpu", 2))
    job = api.submit(GPUS)
    assert job["queue"] == {"position": 1, "waiting_for": lack}
    first = api.get(job)
    assert first.json() == job == api.client.get("/v1/jobs").json()["data"][0]
    assert api.get(job, If_None_Match=first.headers["ETag"]).status_code == 304
    known(api, worker("large", "gpu", 4))
    now = api.get(job, If_None_Match=first.headers["ETag"])
    assert (now.status_code, now.json()["queue"]) == (200, {"position": 1, "waiting_for": None})
    assert api.client.get("/v1/jobs").json()["data"][0] == now.json(), "the list has not kept the old body"


def test_a_silent_worker_is_known_for_its_time_only(api: Api) -> None:
    known(api)
    job = api.submit()
    assert job["queue"]["waiting_for"] == "there is no live worker"
    known(api, worker("w", devices=1))
    assert api.get(job).json()["queue"]["waiting_for"] is None
    known(api, worker("w", devices=1), ttl_s=-1)
    assert api.get(job).json()["queue"]["waiting_for"] == "there is no live worker"
    assert api.post(job, "cancel").json()["queue"] is None


def test_a_job_far_back_says_so_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "QUEUE_DEPTH", 1)
    known(api, worker("w", devices=1))
    first, second = api.submit(), api.submit(GPUS)
    assert api.get(second).json()["queue"] == {"position": None, "waiting_for": "no live worker has a GPU"}
    assert [job["queue"]["waiting_for"] for job in api.client.get("/v1/jobs").json()["data"]] == [
        "no live worker has a GPU",
        None,
    ]
    assert api.get(first).json()["queue"]["position"] == 1


def test_a_worker_that_comes_is_no_lost_update(api: Api) -> None:
    known(api)
    job = api.submit()
    etag = api.get(job).headers["ETag"]
    known(api, worker("w", devices=1))
    patch: dict[str, Any] = {"json": {"labels": {"a": "1"}}, "headers": {"If-Match": etag}}
    assert api.client.patch(f"/v1/jobs/{job['id']}", **patch).status_code == 200
    assert api.client.patch(f"/v1/jobs/{job['id']}", **patch).status_code == 412


def test_a_dry_run_warns_of_it(api: Api) -> None:
    known(api, worker("w", devices=1))
    warning = "the job would wait: no live worker has 2 devices; the largest has 1"
    spec = {**SPEC, "compute": {"devices": 2}}
    plan = api.client.post("/v1/jobs?dry_run=true", json={"spec": spec}).json()
    assert plan["warnings"][-1] == warning
    grid = {"spec": SPEC, "grid": {"/compute": [{"devices": 1}, {"devices": 2}]}}
    children = api.client.post("/v1/sweeps?dry_run=true", json=grid).json()["children"]
    assert [warning in child["warnings"] for child in children] == [False, True]


def test_the_command_line_says_so(server: httpx2.Client) -> None:
    job = server.post("/v1/jobs", json={"spec": GPUS}).json()
    key = server.headers["Authorization"].removeprefix("Bearer ")
    variables = {"ESPALIER_URL": str(server.base_url), "ESPALIER_API_KEY": key}
    for command in (["list"], ["status", job["id"]]):
        done = CliRunner().invoke(cli, command, env=variables)
        assert done.exit_code == 0, done.output
        assert "there is no live worker" in " ".join(done.output.split()), done.output

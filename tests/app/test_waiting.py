"""A job that no live worker can take says what it waits for: when it is looked at, in lists, and in a dry run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.jobs import fleet, repository
from app.jobs.fleet import Worker
from app.jobs.needs import Live, Needs, waiting_for
from tests.helpers.api import SPEC, W1, Api
from tests.helpers.job_life import worker

GPUS = {**SPEC, "compute": {"device": "cuda", "devices": 4}}
ONE = Live("cpu", 1, 2**30, None, frozenset({"wanda", "mask"}))
FOUR = ONE._replace(devices=4)
PAIR = Live("gpu", 2, 2**30, 2**33, frozenset({"wanda", "mask"}))
SIXTEEN = "it takes at least 16.0 GiB, and no live worker has more memory"
OLD = Live("cpu", 1, None, None, None)
"""From before workers told their methods."""


def known(api: Api, *workers: Worker, ttl_s: float = 60) -> None:
    """These workers are alive, and no other."""
    with api.database.write() as session:
        fleet.make_known(session, W1, ttl_s=-1)
        fleet.forget_silent(session)
        for each in workers:
            fleet.make_known(session, each, ttl_s=ttl_s)


@pytest.mark.parametrize(
    ("workers", "job", "said"),
    [
        ([], Needs("any", 1, ""), "there is no live worker"),
        ([ONE], Needs("any", 1, " wanda mask "), None),
        ([ONE], Needs("any", 2, ""), "no live worker has 2 devices; the largest has 1"),
        ([ONE], Needs("gpu", 1, ""), "no live worker has a GPU"),
        ([ONE, PAIR], Needs("gpu", 4, ""), "no live worker has 4 GPUs; the largest has 2"),
        ([ONE, PAIR], Needs("gpu", 2, " wanda "), None),
        ([ONE, PAIR], Needs("any", 2, " owl "), "no live worker with 2 devices has the method owl"),
        ([ONE], Needs("any", 1, " owl fista mask "), "no live worker has the methods fista and owl"),
        ([ONE, OLD], Needs("any", 1, " owl "), None),
        ([PAIR], Needs("gpu", 1, " owl "), "no live worker with a GPU has the method owl"),
        ([ONE], Needs("any", 1, "", 2**30), None),
        (
            [ONE],
            Needs("any", 1, "", 2**31),
            "it takes at least 2.0 GiB, and no live worker has more memory than 1.0 GiB",
        ),
        ([ONE, PAIR], Needs("any", 1, "", 2**33), None),
        ([PAIR], Needs("gpu", 2, "", 2**33), None),
        (
            [PAIR],
            Needs("gpu", 2, "", 2**34),
            "it takes at least 16.0 GiB on each of 2 GPUs, and no live worker has more memory than 8.0 GiB for each",
        ),
        ([FOUR], Needs("any", 4, "", 2**28), None),
        (
            [FOUR],
            Needs("any", 4, "", 2**29),
            "it takes at least 0.5 GiB on each of 4 devices, and no live worker has more memory than 0.2 GiB for each",
        ),
        (
            [PAIR],
            Needs("gpu", 1, "", 2**34),
            "it takes at least 16.0 GiB, and no live worker has more memory than 8.0 GiB",
        ),
        ([PAIR._replace(device_memory_bytes=None)], Needs("gpu", 1, "", 2**40), None),
    ],
)
def test_what_is_said(workers: list[Live], job: Needs, said: str | None) -> None:
    assert waiting_for(workers, job) == said


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


def test_a_method_that_no_live_worker_has_and_memory_too(api: Api) -> None:
    methods = {"score": ["wanda"], "allocate": ["uniform"], "prune": ["mask"]}
    old = replace(worker("old", devices=1), methods=methods, memory_bytes=2**20)
    known(api, old)
    lack = "no live worker has the method magnitude"
    job = api.submit()
    assert job["queue"] == {"position": 1, "waiting_for": lack}
    assert api.get(job).json() == job == api.client.get("/v1/jobs").json()["data"][0]
    plan = api.client.post("/v1/jobs?dry_run=true", json={"spec": SPEC}).json()
    assert plan["warnings"][-1] == f"the job would wait: {lack}"
    known(api, replace(old, id="wrk_new", methods={**methods, "score": ["magnitude"]}))
    assert "no live worker has more memory than 0.0 GiB" in api.get(job).json()["queue"]["waiting_for"]
    plan = api.client.post("/v1/jobs?dry_run=true", json={"spec": SPEC}).json()
    assert "no live worker has more memory than 0.0 GiB" in plan["warnings"][-1]
    known(api, replace(old, id="wrk_large", methods={**methods, "score": ["magnitude"]}, memory_bytes=2**40))
    assert api.get(job).json()["queue"]["waiting_for"] is None


def test_a_worker_that_has_the_least_memory_is_not_passed_over(api: Api) -> None:
    """Though it has less than the job would take with more: batches are halved, and models measured in blocks."""
    perplexity = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 128, "batch_size": 64}
    spec = {**SPEC, "evaluate": [perplexity]}
    plan = api.client.post("/v1/jobs?dry_run=true", json={"spec": spec}).json()
    least = plan["least_memory_bytes"]
    assert least < plan["peak_memory_bytes"] - plan["mapped_memory_bytes"]
    for room, waits in ((least - 1, True), (least, False)):
        known(api, replace(worker("w", devices=1), id=f"wrk_{waits}", memory_bytes=room))
        plan = api.client.post("/v1/jobs?dry_run=true", json={"spec": spec}).json()
        assert any("it takes at least" in warning for warning in plan["warnings"]) == waits
        assert (api.submit(spec)["queue"]["waiting_for"] is not None) == waits


def test_the_command_line_says_so(server: httpx2.Client) -> None:
    job = server.post("/v1/jobs", json={"spec": GPUS}).json()
    key = server.headers["Authorization"].removeprefix("Bearer ")
    variables = {"ESPALIER_URL": str(server.base_url), "ESPALIER_API_KEY": key}
    for command in (["list"], ["status", job["id"]]):
        done = CliRunner().invoke(cli, command, env=variables)
        assert done.exit_code == 0, done.output
        assert "there is no live worker" in " ".join(done.output.split()), done.output

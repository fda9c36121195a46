"""Workers as clients see them."""

from __future__ import annotations

import httpx2

from app.jobs import attempts, fleet
from app.jobs.fleet import Hardware, Worker
from tests.helpers.api import SPEC, Api

GPUS = Worker(
    "wrk_g",
    "gpu-1:7",
    "gpu",
    {"GPU-a": "GPU-a", "gpu-1/1": "1"},
    {"GPU-a": Hardware("H100", 80 * 2**30)},
    2**40,
    {"score": ["magnitude"], "allocate": ["uniform"], "prune": ["mask"]},
)


def test_a_worker_is_shown_with_what_it_has_and_does(api: Api, foreign: httpx2.Headers) -> None:
    job = api.submit({**SPEC, "compute": {"device": "cuda"}})
    with api.database.write() as session:
        assert attempts.claim(session, GPUS, ttl_s=60, overtaking_ms=0) is not None
    [shown, other] = api.client.get("/v1/workers").json()["data"]
    assert (shown["name"], shown["kind"], shown["alive"], shown["memory_bytes"]) == ("gpu-1:7", "gpu", True, 2**40)
    assert shown["methods"] == GPUS.methods
    assert shown["devices"] == [
        {"name": "GPU-a", "model": "H100", "memory_bytes": 80 * 2**30, "busy": True, "job_id": job["id"]},
        {"name": "1", "model": None, "memory_bytes": None, "busy": False, "job_id": None},
    ]
    assert (other["name"], {device["busy"] for device in other["devices"]}) == ("w1", {False})
    theirs = api.client.get("/v1/workers", headers=foreign).json()["data"][0]
    assert theirs["devices"][0] == {**shown["devices"][0], "job_id": None}


def test_a_silent_worker_is_said_to_be_so(api: Api) -> None:
    before = api.client.get("/v1/workers").json()["data"]
    with api.database.write() as session:
        fleet.make_known(session, GPUS, ttl_s=-1)
    shown, *others = api.client.get("/v1/workers").json()["data"]
    assert (shown["alive"], others) == (False, before)
    assert shown["last_seen_at"] is not None

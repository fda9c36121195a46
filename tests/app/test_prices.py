"""Prices of device time: how they are set, and of jobs and tenants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text

from app.jobs import attempts, fleet
from app.jobs.fleet import Hardware, Worker
from app.prices import money, of_devices, parsed
from app.settings import Settings
from tests.helpers.api import SPEC, Api
from tests.helpers.job_life import worker

RATE = 20_000_000
"""0.02 a second."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Of an API that knows the price of a second."""
    return settings.model_copy(update={"prices": "cpu=0.02", "currency": "EUR"})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", {}),
        ("cpu=0.00002", {"cpu": 20_000}),
        (" cpu = 1 , NVIDIA H100 80GB HBM3=0.0011,", {"cpu": 10**9, "NVIDIA H100 80GB HBM3": 1_100_000}),
        ("cpu=0", {"cpu": 0}),
        ("cpu=0.000000001", {"cpu": 1}),
    ],
)
def test_they_are_read(given: str, found: dict[str, int]) -> None:
    assert parsed(given) == found


@pytest.mark.parametrize(
    "given",
    ["cpu", "cpu=", "=1", "cpu=-1", "cpu=0.0000000001", "cpu=nan", "cpu=inf", "cpu=1e9", "cpu=a", "cpu=1;gpu=2"],
)
def test_nonsense_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="KIND=AMOUNT"):
        Settings(prices=given, currency="EUR")


def test_a_price_needs_a_currency() -> None:
    for given in ({"prices": "cpu=1"}, {"currency": "EUR"}):
        with pytest.raises(ValidationError, match="belong together"):
            Settings(**given)


def test_amounts_are_written_in_full() -> None:
    assert [money(amount, "EUR").amount for amount in (0, 1, 10, 1_500_000_000, 10**20, 3 * 10**10)] == [
        "0", "0.000000001", "0.00000001", "1.5", "100000000000", "30",
    ]  # fmt: skip


def test_a_device_is_priced_by_its_model_else_by_its_kind() -> None:
    prices = {"gpu": 5, "H100": 7}
    assert of_devices(prices, "gpu", ["H100", None]) == 12
    assert of_devices(prices, "cpu", [None]) is None
    pair = Worker("wrk_g", "g", "gpu", {"a": "0", "b": "1"}, {"0": Hardware("H100")}, prices=prices, currency="EUR")
    assert (pair.price(["a"]), pair.price(["a", "b"])) == (7, 12)


def priced(name: str = "priced", currency: str = "EUR") -> Worker:
    return replace(worker(name), prices={"cpu": RATE}, currency=currency)


def take(api: Api, seconds: int, by: Worker) -> attempts.Claim:
    """The attempt of a worker which has taken so long."""
    with api.database.write() as session:
        held = attempts.claim(session, by, ttl_s=60, overtaking_ms=0)
        assert held is not None
        session.execute(
            text("update attempts set started_at = started_at - :ms where finished_at is null"), {"ms": seconds * 1000}
        )
    return held


def test_of_a_job_and_its_tenant(api: Api) -> None:
    job = api.submit()
    assert (job["price"], api.client.get("/v1/me").json()["usage"]["prices"]) == (None, [])
    held = take(api, 10, priced())
    [running] = api.client.get("/v1/me").json()["usage"]["prices"]
    assert 0.2 <= float(running["amount"]) < 0.4
    api.fail(held)
    api.post(job, "retry")
    api.succeed(take(api, 20, priced()))
    shown = api.get(job).json()
    seconds, price = shown["durations"]["device_s"], shown["price"]
    assert price["currency"] == "EUR"
    assert float(price["amount"]) == pytest.approx(seconds * 0.02)
    api.client.delete(f"/v1/jobs/{job['id']}")
    usage = api.client.get("/v1/me").json()["usage"]
    assert usage["prices"] == [price]
    tenant = api.client.get(f"/v1/tenants/{api.tenant_id}").json()
    assert tenant["usage"]["prices"] == [price]


def test_without_a_price_and_in_another_currency(api: Api) -> None:
    free = api.submit()
    api.succeed(take(api, 10, worker("free")))
    assert api.get(free).json()["price"] is None
    for currency in ("EUR", "USD"):
        api.submit()
        api.succeed(take(api, 10, priced(currency, currency)))
    assert [each["currency"] for each in api.client.get("/v1/me").json()["usage"]["prices"]] == ["EUR", "USD"]


def planned(api: Api, **parts: Any) -> dict[str, Any]:
    return dict(api.client.post("/v1/jobs?dry_run=true", json={"spec": {**SPEC, **parts}}).json())


def test_a_dry_run_foretells_it_where_it_foretells_the_time(api: Api) -> None:
    plan = planned(api)
    assert plan["price"]["currency"] == "EUR"
    assert float(plan["price"]["amount"]) == pytest.approx(0.02 * plan["elapsed_s"], rel=0.05)
    assert planned(api, compute={"device": "cuda"})["price"] is None
    assert planned(api, compute={"devices": 2})["price"] is None
    sweep = {"spec": SPEC, "grid": {"/seed": [0, 1]}}
    found = api.client.post("/v1/sweeps?dry_run=true", json=sweep).json()
    assert float(found["price"]["amount"]) == pytest.approx(2 * float(plan["price"]["amount"]))
    with api.database.write() as session:
        fleet.make_known(session, worker("large", "gpu", 1), ttl_s=60)
    assert planned(api)["price"] is None, "a GPU may take it, and another time"
    assert api.client.post("/v1/sweeps?dry_run=true", json=sweep).json()["price"] is None


def test_no_worker_no_time_no_price(api: Api) -> None:
    with api.database.write() as session:
        session.execute(text("delete from workers"))
    assert planned(api)["price"] is None

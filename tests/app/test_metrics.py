"""Totals that outlive their jobs, whoever is asked, with labels that no client can multiply."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from app.db import now_ms
from app.failure import Failure
from app.jobs import attempts, figures, fleet, upkeep
from app.jobs.models import Job, Outbox
from app.metrics import observations
from app.metrics.collector import StateCollector
from app.webhooks import deliverer
from app.webhooks.models import Delivery
from app.webhooks.sending import Answer
from tests.helpers.api import SPEC, WANDA, Api, make_key
from tests.helpers.job_life import worker


def found(api: Api, *, tenants: bool = False) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The page of another replica, just started."""
    registry = CollectorRegistry()
    registry.register(StateCollector(api.database, tenants=tenants))
    page = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def of(found: dict[Any, float], name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {labels: value for (metric, labels), value in found.items() if metric == name}


def test_durations_outlive_their_job(api: Api) -> None:
    job = api.submit()
    held = api.claim()
    with api.database.write() as session:
        session.execute(update(Job).values(deadline_at=now_ms() - 100_000 + Job.deadline_s * 1000))
        attempts.record(session, held, [], None, [("load", 0.3), ("score", 7.0), ("prune", 70.0)])
    api.succeed(held)
    before = found(api)
    label = (("method", "mask"), ("status", "succeeded"))
    assert of(before, "espalier_job_duration_seconds_count") == {label: 1}
    assert before["espalier_job_duration_seconds_sum", label] == pytest.approx(100, abs=5)
    assert before["espalier_job_duration_seconds_bucket", (("le", "60"), *label)] == 0
    assert before["espalier_job_duration_seconds_bucket", (("le", "300"), *label)] == 1
    assert of(before, "espalier_stage_duration_seconds_sum") == {
        (("method", "none"), ("stage", "load")): 0.3,
        (("method", "magnitude"), ("stage", "score")): 7.0,
        (("method", "mask"), ("stage", "prune")): 70.0,
    }
    assert api.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    totals = {key: value for key, value in before.items() if "duration" in key[0] or "wait" in key[0]}
    assert totals.items() <= found(api).items()
    while api.database.transact(lambda session: observations.add_up(session, limit=2)):
        assert totals.items() <= found(api).items()  # neither lost nor counted twice while they are added up
    api.succeeded()
    assert found(api)["espalier_job_duration_seconds_count", label] == 2


def test_a_pause_and_a_retry_by_hand_do_not_lengthen_a_job(api: Api) -> None:
    job = api.submit()
    api.fail(api.claim())
    with api.database.write() as session:
        session.execute(update(Job).values(started_at=now_ms() - 10**9))
    api.post(job, "retry")
    api.fail(api.claim())
    assert of(found(api), "espalier_job_duration_seconds_count")[("method", "mask"), ("status", "failed")] == 2
    assert of(found(api), "espalier_job_duration_seconds_sum")[("method", "mask"), ("status", "failed")] < 60


def test_a_word_that_is_no_method_of_ours_is_other(api: Api) -> None:
    with api.database.write() as session:
        for number in range(50):
            spec = {"score": {"method": f"made-up-{number}"}, "evaluate": [{"method": f"made-up-{number}"}]}
            figures.stages_finished(session, spec, [("score", 1), ("evaluate", 1), (f"stage-{number}", 1)])
    assert of(found(api), "espalier_stage_duration_seconds_count") == {
        (("method", "other"), ("stage", "score")): 50,
        (("method", "other"), ("stage", "evaluate")): 50,
        (("method", "none"), ("stage", "other")): 50,
    }


def test_every_label_of_a_submission_is_one_of_ours(api: Api) -> None:
    api.submit(WANDA, labels={"method": "made-up"})
    refused = api.client.post("/v1/jobs", json={"spec": {**SPEC, "score": {"method": "made-up"}}})
    assert refused.status_code == 422
    api.fail(api.claim())
    assert "made-up" not in str(found(api))


class TestTenants:
    def test_are_named_only_where_that_is_asked_for(self, api: Api) -> None:
        api.submit()
        api.succeed(api.claim())
        name = "espalier_queue_wait_seconds_count"
        assert of(found(api), name) == {(("tenant", "all"),): 1}
        assert of(found(api, tenants=True), name) == {(("tenant", "ours"),): 1}
        stored = of(found(api, tenants=True), "espalier_stored_bytes")
        assert stored[(("tenant", "ours"),)] == of(found(api), "espalier_stored_bytes")[(("tenant", "all"),)] > 0

    def test_beyond_the_oldest_are_others(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("second", "third"):
            make_key(api.services, name)
        with api.database.write() as session:
            figures.taken(session, api.tenant_id, 1)
            figures.taken(session, "ten_gone", 1)
        monkeypatch.setattr("app.metrics.collector.MOST_TENANTS", 2)
        names = {dict(labels)["tenant"] for labels in of(found(api, tenants=True), "espalier_stored_bytes")}
        assert len(names) == 3
        assert "others" in names
        assert len(of(found(api, tenants=True), "espalier_queue_wait_seconds_count")) == 2


def test_a_job_that_is_announced_again_has_waited_all_the_same(api: Api) -> None:
    api.submit()
    with api.database.write() as session:
        session.execute(update(Job).values(queued_at=now_ms() - 90_000, not_before=now_ms() - 90_000))
        session.query(Outbox).delete()
        assert upkeep.announce_again(session, older_than_s=30) == 1
    assert found(api)["espalier_queue_oldest_seconds", ()] == pytest.approx(90, abs=5)
    api.claim()
    assert found(api)["espalier_queue_wait_seconds_sum", (("tenant", "all"),)] == pytest.approx(90, abs=5)


def test_a_wait_for_a_retry_is_none_for_a_worker(api: Api) -> None:
    api.submit()
    failure = Failure(code="runner_died", message="", hint="", retryable=True)
    held = api.claim()
    with api.database.write() as session:
        attempts.fail(session, held, failure, backoff_s=60)
        session.execute(update(Job).values(queued_at=Job.queued_at - 60_000, not_before=0))
    api.claim()
    assert found(api)["espalier_queue_wait_seconds_sum", (("tenant", "all"),)] < 10
    assert of(found(api), "espalier_job_failures_total") == {(("code", "runner_died"),): 1}


def test_lease_losses_are_there_from_the_start(api: Api) -> None:
    assert of(found(api), "espalier_lease_losses_total") == {(): 0}
    api.submit()
    api.claim()
    with api.database.write() as session:
        session.execute(update(Job).values(lease_expires_at=now_ms() - 1))
        upkeep.reap(session, backoff_s=0)
    assert of(found(api), "espalier_lease_losses_total") == {(): 1}
    assert of(found(api), "espalier_attempt_duration_seconds_count") == {(("method", "mask"), ("outcome", "lost")): 1}


def test_webhook_tries_by_outcome(api: Api) -> None:
    hook = {"url": "https://93.184.216.34/hook"}
    assert api.client.post("/v1/webhooks", json=hook).status_code == 201
    api.submit()
    assert found(api)["espalier_webhooks_pending", ()] == 1
    answers = iter([Answer(500, "no", None, 0.2), Answer(200, None, None, 0.2)])
    sender = deliverer.Deliverer(api.database, api.services.settings, send=lambda *_: next(answers))
    for _ in range(2):
        with api.database.write() as session:
            session.execute(update(Delivery).values(due_at=0))
        sender.step()
    tries = of(found(api), "espalier_webhook_try_seconds_count")
    assert tries == {(("outcome", name),): count for name, count in (("delivered", 1), ("failed", 1), ("given_up", 0))}
    assert found(api)["espalier_webhooks_pending", ()] == 0


def test_workers_busy_and_idle_and_what_they_use(api: Api) -> None:
    use = {"device": "GPU-1", "memory_bytes": 80, "memory_used_bytes": 60, "busy": 0.9}
    with api.database.write() as session:
        for name in ("gpu-1:7", "gpu-1:8"):  # two workers that share a GPU: it is shown once
            fleet.make_known(session, worker(name, "gpu", 1), ttl_s=60, use=[use])
            fleet.make_known(session, worker(name, "gpu", 1), ttl_s=60)  # without a look the last one stands
    api.submit()
    api.claim()
    now = found(api)
    assert now["espalier_workers", (("kind", "cpu"), ("state", "busy"))] == 1
    assert now["espalier_workers", (("kind", "cpu"), ("state", "idle"))] == 0
    assert now["espalier_workers", (("kind", "gpu"), ("state", "idle"))] == 2
    device = (("device", "GPU-1"), ("host", "gpu-1"))
    assert of(now, "espalier_device_memory_used_bytes") == {device: 60}
    assert of(now, "espalier_device_busy_ratio") == {device: 0.9}
    shown = api.client.get("/v1/workers").json()["data"]
    assert [each["use"] for each in shown if each["kind"] == "gpu"] == [[use], [use]]

"""The job's life on both databases: every transition, the fence, the lease, the outbox."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from app.db import Database, now_ms
from app.errors import InvalidTransition
from app.failure import Failure
from app.ids import new_id
from app.jobs import attempts, service, upkeep, worker_repository
from app.jobs.lifecycle import HELD
from app.jobs.models import STATUSES, Artifact, Attempt, Event, Job, Outbox, ReportRecord
from app.queue import relay
from app.settings import Settings
from tests.helpers.job_life import (
    FINAL,
    MANY,
    REPORT,
    SPEC,
    claim,
    claimed,
    expire_lease,
    reap,
    status,
    submit,
    succeed,
    worker,
)
from workers.engine.spec import CompressionSpec
from workers.tasks import claim_next

RETRYABLE = Failure(code="runner_died", message="it died", hint="wait", retryable=True, stage="prune")


def events(database: Database, job_id: str) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.seq)))


def outbox(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Outbox.job_id).order_by(Outbox.id)))


def act(database: Database, job_id: str, change: Any) -> None:
    with database.write() as session:
        job = worker_repository.lock_job(session, job_id)
        assert job is not None
        change(session, job)


def test_submit_writes_job_event_and_message_together(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant, labels={"team": "a"})
    assert (status(database, job_id), events(database, job_id), outbox(database)) == ("queued", ["queued"], [job_id])


def test_nothing_is_written_when_the_transaction_fails(database: Database, tenant: str) -> None:
    def half_done() -> None:
        with database.write() as session:
            service.create(
                session,
                tenant_id=tenant,
                spec=SPEC,
                labels={},
                priority=0,
                max_attempts=1,
                deadline_s=1,
                request_id=None,
            )
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_done()
    with database.read() as session:
        assert [session.scalar(select(func.count()).select_from(t)) for t in (Job, Event, Outbox)] == [0, 0, 0]


def test_a_job_from_queue_to_success(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    held = claimed(database)
    assert (held.job_id, held.attempt, held.fence) == (job_id, 1, 1)
    with database.write() as session:
        attempts.record(session, held, [("stage", {"stage": "prune"})], {"stage": "prune", "done": 1, "total": 4})
    succeed(database, held)
    assert events(database, job_id) == ["queued", "running", "stage", "succeeded"]
    with database.read() as session:
        job = session.get_one(Job, job_id)
        assert (job.status, job.stage, job.lease_expires_at, job.lease_owner) == ("succeeded", "prune", None, None)
        assert job.metrics == {"x/y": {"dense": 2.0, "pruned": 3.0, "ratio": 1.5, "unit": "1"}}
        assert job.progress is not None
        assert job.progress["done"] == 4
        assert session.get_one(Attempt, (job_id, 1)).outcome == "succeeded"
        assert session.get_one(ReportRecord, job_id).body == REPORT.model_dump(mode="json")
        assert session.get_one(Artifact, (job_id, "a")).key == "key/1"


def test_claims_go_by_priority_then_age(database: Database, tenant: str) -> None:
    old, new, urgent = submit(database, tenant), submit(database, tenant), submit(database, tenant, priority=5)
    assert [claimed(database).job_id for _ in range(3)] == [urgent, old, new]
    assert claim(database) is None


def test_a_gpu_job_waits_for_a_gpu_worker(database: Database, tenant: str) -> None:
    spec = CompressionSpec.model_validate({**SPEC.model_dump(), "compute": {"device": "cuda"}})
    job_id = submit(database, tenant, spec=spec)
    assert claim(database) is None
    held = claim(database, by=worker(kind="gpu"))
    assert held is not None
    assert held.job_id == job_id


def test_many_claimants_one_winner_each(database: Database, tenant: str) -> None:
    jobs = {submit(database, tenant) for _ in range(40)}
    won: list[str] = []

    def work() -> None:
        while (held := claim(database)) is not None:
            won.append(held.job_id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(jobs)


def test_an_expired_lease_queues_the_job_and_fences_the_old_worker(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    zombie = claimed(database)
    expire_lease(database, job_id)
    assert reap(database) == 1
    assert status(database, job_id) == "queued"
    successor = claimed(database)
    assert (successor.attempt, successor.fence) == (2, 2)

    before = _row(database, job_id)
    for write in (
        lambda s: attempts.renew(s, zombie, ttl_s=60),
        lambda s: attempts.record(s, zombie, [("stage", {"stage": "x"})], None),
        lambda s: attempts.succeed(s, zombie, report=REPORT, manifest_sha256="0" * 64, files=[]),
        lambda s: attempts.fail(s, zombie, FINAL, backoff_s=0),
        lambda s: attempts.cancelled(s, zombie),
        lambda s: attempts.release(s, zombie),
    ):
        with pytest.raises(attempts.Fenced), database.write() as session:
            write(session)
    assert _row(database, job_id) == before
    succeed(database, successor)
    assert status(database, job_id) == "succeeded"


def _row(database: Database, job_id: str) -> tuple[Any, ...]:
    with database.read() as session:
        return tuple(session.execute(text("select * from jobs where id = :id"), {"id": job_id}).one())


def test_attempts_are_bounded_even_if_every_worker_dies(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant, max_attempts=2)
    for _ in range(2):
        assert status(database, job_id) == "queued"
        claimed(database)
        expire_lease(database, job_id)
        reap(database)
    with database.read() as session:
        job = session.get_one(Job, job_id)
        assert job.status == "failed"
        assert job.error is not None
        assert (job.error["code"], job.error["attempt"]) == ("worker_lost", 2)
        assert [a.outcome for a in session.scalars(select(Attempt).order_by(Attempt.number))] == ["lost", "lost"]


def test_a_live_lease_is_not_reaped_and_renewal_extends_it(database: Database, tenant: str) -> None:
    submit(database, tenant)
    held = claimed(database, ttl_s=60)
    assert reap(database) == 0
    expire_lease(database, held.job_id)
    with database.write() as session:
        attempts.renew(session, held, ttl_s=60)
    assert reap(database) == 0


def test_a_retryable_failure_waits_before_the_next_attempt_and_doubles(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    waits = []
    for _ in range(2):
        held = claimed(database)
        with database.write() as session:
            attempts.fail(session, held, RETRYABLE, backoff_s=100)
        assert claim(database) is None  # not before its time
        with database.write() as session:
            waits.append(session.execute(select(Job.not_before - now_ms()).where(Job.id == job_id)).scalar_one())
            session.execute(text("update jobs set not_before = 0"))
    assert waits == [pytest.approx(100_000, abs=5_000), pytest.approx(200_000, abs=5_000)]
    held = claimed(database)
    with database.write() as session:
        attempts.fail(session, held, RETRYABLE, backoff_s=100)
    assert status(database, job_id) == "failed"


def test_a_final_failure_keeps_its_attempts(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    with database.write() as session:
        attempts.fail(session, attempts.claim(session, MANY, ttl_s=9, overtaking_ms=0), FINAL, backoff_s=0)  # type: ignore[arg-type]
    assert status(database, job_id) == "failed"
    act(database, job_id, service.retry)
    assert status(database, job_id) == "queued"
    assert claimed(database).attempt == 2


def test_cancel_while_queued_is_immediate(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    act(database, job_id, service.cancel)
    assert events(database, job_id) == ["queued", "cancelling", "cancelled"]
    assert claim(database) is None
    act(database, job_id, service.cancel)  # idempotent
    assert events(database, job_id) == ["queued", "cancelling", "cancelled"]


def test_cancel_while_running_is_an_order_to_the_worker(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    held = claimed(database)
    act(database, job_id, service.cancel)
    with database.write() as session:
        assert attempts.renew(session, held, ttl_s=60) == attempts.Orders(cancel=True, pause=False, overdue=False)
    with pytest.raises(InvalidTransition):
        succeed(database, held)  # the cancel came first
    with database.write() as session:
        attempts.cancelled(session, held)
    assert status(database, job_id) == "cancelled"


@pytest.mark.parametrize("last_write", [attempts.release, lambda s, h: attempts.fail(s, h, RETRYABLE, backoff_s=0)])
def test_a_cancel_is_honoured_whatever_the_attempt_ends_with(database: Database, tenant: str, last_write: Any) -> None:
    job_id = submit(database, tenant)
    held = claimed(database)
    act(database, job_id, service.cancel)
    with database.write() as session:
        last_write(session, held)
    assert status(database, job_id) == "cancelled"


def test_cancel_with_a_dead_worker_ends_with_its_lease(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    claimed(database)
    act(database, job_id, service.cancel)
    expire_lease(database, job_id)
    reap(database)
    assert status(database, job_id) == "cancelled"


def pausing(database: Database, tenant: str, **changes: Any) -> attempts.Claim:
    """A claim of a job that was told to pause."""
    submit(database, tenant, **changes)
    held = claimed(database)
    act(database, held.job_id, service.pause)
    return held


def test_pause_while_queued_is_immediate_and_keeps_the_place(database: Database, tenant: str) -> None:
    first, second = submit(database, tenant), submit(database, tenant)
    act(database, first, service.pause)
    act(database, first, service.pause)  # idempotent
    assert claimed(database).job_id == second
    assert claim(database) is None
    third = submit(database, tenant)
    for _ in range(2):
        act(database, first, service.resume)
    assert events(database, first) == ["queued", "paused", "queued"]
    assert outbox(database)[-1] == first  # somebody is told
    assert [claimed(database).job_id for _ in range(2)] == [first, third]


def test_pause_while_running_is_an_order_to_the_worker_and_frees_its_devices(database: Database, tenant: str) -> None:
    one = worker("one", devices=1)
    job_id = submit(database, tenant, max_attempts=1)
    held = claim(database, by=one)
    assert held is not None
    act(database, job_id, service.pause)
    with database.write() as session:
        assert attempts.renew(session, held, ttl_s=60) == attempts.Orders(cancel=False, pause=True, overdue=False)
        attempts.record(session, held, [("checkpoint", {"block": 3})], None)  # as it finishes its block
    assert claim(database, by=one) is None
    with database.write() as session:
        attempts.release(session, held)
    assert status(database, job_id) == "paused"
    with database.read() as session:
        assert session.get_one(Attempt, (job_id, 1)).outcome == "paused"
        job = session.get_one(Job, job_id)
        assert (job.lease_expires_at, job.attempts_left) == (None, 1)
    other = submit(database, tenant)
    taken = claim(database, by=one)
    assert taken is not None
    assert taken.job_id == other
    act(database, job_id, service.resume)
    successor = claimed(database)
    assert (successor.job_id, successor.attempt, successor.fence) == (job_id, 2, 2)
    with pytest.raises(attempts.Fenced), database.write() as session:
        attempts.release(session, held)
    succeed(database, successor)
    assert events(database, job_id) == [
        "queued", "running", "pausing", "checkpoint", "paused", "queued", "running", "succeeded",
    ]  # fmt: skip


def test_a_job_that_ends_before_it_pauses_has_ended(database: Database, tenant: str) -> None:
    held = pausing(database, tenant)
    succeed(database, held)
    assert status(database, held.job_id) == "succeeded"
    held = pausing(database, tenant)
    with database.write() as session:
        attempts.fail(session, held, FINAL, backoff_s=0)
    assert status(database, held.job_id) == "failed"


def test_a_failure_that_would_queue_a_pausing_job_pauses_it(database: Database, tenant: str) -> None:
    held = pausing(database, tenant, max_attempts=2)
    with database.write() as session:
        attempts.fail(session, held, RETRYABLE, backoff_s=100)
    assert status(database, held.job_id) == "paused"
    act(database, held.job_id, service.resume)
    assert claimed(database).attempt == 2  # at once: the wait is over, or nobody minds
    act(database, held.job_id, service.pause)
    expire_lease(database, held.job_id)
    assert reap(database) == 1
    assert status(database, held.job_id) == "failed"  # both attempts counted


def test_a_worker_that_dies_while_its_job_pauses_leaves_it_paused(database: Database, tenant: str) -> None:
    zombie = pausing(database, tenant)
    expire_lease(database, zombie.job_id)
    assert reap(database) == 1
    assert status(database, zombie.job_id) == "paused"
    with pytest.raises(attempts.Fenced), database.write() as session:
        attempts.release(session, zombie)
    act(database, zombie.job_id, service.resume)
    succeed(database, claimed(database))


def test_a_cancel_ends_pausing_and_paused_jobs(database: Database, tenant: str) -> None:
    held = pausing(database, tenant)
    act(database, held.job_id, service.cancel)
    with database.write() as session:
        assert attempts.renew(session, held, ttl_s=60) == attempts.Orders(cancel=True, pause=False, overdue=False)
        attempts.release(session, held)  # it was about to pause
    assert status(database, held.job_id) == "cancelled"
    job_id = submit(database, tenant)
    act(database, job_id, service.pause)
    act(database, job_id, service.cancel)
    assert events(database, job_id) == ["queued", "paused", "cancelling", "cancelled"]


def test_the_deadline_waits_with_a_paused_job(database: Database, tenant: str) -> None:
    held = pausing(database, tenant, deadline_s=60)
    with database.write() as session:
        attempts.release(session, held)
        session.execute(text("update jobs set paused_at = paused_at - 5000, deadline_at = deadline_at - 5000"))
    with database.read() as session:
        before = session.get_one(Job, held.job_id)
    act(database, held.job_id, service.resume)
    with database.read() as session:
        after = session.get_one(Job, held.job_id)
    assert after.paused_at is None
    assert before.deadline_at is not None
    assert after.deadline_at == before.deadline_at + after.updated_at - (before.paused_at or 0)
    assert after.deadline_at - before.deadline_at >= 5000


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_events_loses_a_job(database: Database, tenant: str, seed: int) -> None:
    """Clients, workers, their deaths and the reconciler in any order: every job can still be brought to its end, and
    no attempt too many counts."""
    rng = random.Random(seed)
    jobs = [submit(database, tenant, max_attempts=50) for _ in range(2)]
    held: dict[str, attempts.Claim] = {}
    zombies: list[attempts.Claim] = []

    def client(verb: str) -> None:
        with suppress(InvalidTransition):
            act(database, rng.choice(jobs), getattr(service, verb))

    def write(each: attempts.Claim, how: str) -> None:
        with database.write() as session:
            if how == "fail":
                attempts.fail(session, each, RETRYABLE, backoff_s=0)
            else:
                attempts.release(session, each)

    for _ in range(60):
        match rng.choice(["claim", "pause", "pause", "resume", "cancel", "retry", "kill", "end", "zombie"]):
            case "claim":
                if (claimed_now := claim(database)) is not None:
                    held[claimed_now.job_id] = claimed_now
            case "kill" if held:
                job_id, lost = held.popitem()
                zombies.append(lost)
                expire_lease(database, job_id)
                assert reap(database) == 1
            case "end" if held:
                write(held.popitem()[1], rng.choice(["fail", "release"]))
            case "zombie" if zombies:
                with pytest.raises(attempts.Fenced):
                    write(rng.choice(zombies), rng.choice(["fail", "release"]))
            case "pause" | "resume" | "cancel" | "retry" as verb:
                client(verb)
        with database.read() as session:
            for job in session.scalars(select(Job)):
                assert (job.lease_expires_at is not None) == (job.id in held) == (job.status in HELD)
                counted = select(func.count()).where(Attempt.job_id == job.id, Attempt.outcome.in_(("failed", "lost")))
                assert job.status == "failed" or job.attempts_left > 0
                assert session.execute(counted).scalar_one() <= 50
    for each in list(held.values()):
        write(each, "release")
    for job_id in jobs:
        for verb in (service.resume, service.retry):
            with suppress(InvalidTransition):
                act(database, job_id, verb)
    for _ in jobs:
        succeed(database, claimed(database))
    assert {status(database, job_id) for job_id in jobs} == {"succeeded"}


def test_a_worker_shutting_down_gives_the_job_back_for_free(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant, max_attempts=1)
    held = claimed(database)
    with database.write() as session:
        attempts.release(session, held)
    assert status(database, job_id) == "queued"
    succeed(database, claimed(database))
    assert status(database, job_id) == "succeeded"


def test_the_deadline_reaches_the_worker_and_outlives_it(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant, deadline_s=1)
    held = claimed(database)
    with database.write() as session:
        session.execute(text("update jobs set deadline_at = 1"))
    with database.write() as session:
        assert attempts.renew(session, held, ttl_s=60).overdue
    expire_lease(database, job_id)
    reap(database)
    with database.read() as session:
        job = session.get_one(Job, job_id)
        assert job.error is not None
        assert (job.status, job.error["code"]) == ("failed", "timeout")
        assert "larger deadline_s" in job.error["hint"]


@pytest.mark.parametrize("start", STATUSES)
def test_only_the_documented_transitions_exist(database: Database, tenant: str, start: str) -> None:
    """From each status, try every verb; those the table forbids raise and write nothing."""
    verbs = {
        "cancel": service.cancel,
        "pause": service.pause,
        "resume": service.resume,
        "retry": service.retry,
        "remove": service.remove,
    }
    permitted = {
        "queued": {"cancel", "pause", "resume"},
        "running": {"cancel", "pause", "resume"},
        "pausing": {"cancel", "pause"},
        "paused": {"cancel", "pause", "resume"},
        "cancelling": {"cancel"},
        "succeeded": {"remove"},
        "failed": {"retry", "remove"},
        "cancelled": {"cancel", "retry", "remove"},
    }[start]
    for name, verb in verbs.items():
        job_id = submit(database, tenant)
        with database.write() as session:
            session.execute(text("update jobs set status = :s where id = :id"), {"s": start, "id": job_id})
        before = _row(database, job_id)
        if name in permitted:
            act(database, job_id, verb)
        else:
            with pytest.raises(InvalidTransition):
                act(database, job_id, verb)
            assert _row(database, job_id) == before


def test_remove_takes_every_row_along(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant, labels={"a": "b"})
    succeed(database, claimed(database))
    act(database, job_id, service.remove)
    with database.read() as session:
        tables = ("jobs", "job_labels", "events", "attempts", "artifacts", "reports", "outbox")
        assert {t: session.scalar(text(f"select count(*) from {t}")) for t in tables} == dict.fromkeys(tables, 0)


class Broker:
    """Stands where the publisher does, and breaks when told to. The real one is in the end-to-end tests."""

    def __init__(self, breaks_after: int = 1000) -> None:
        self.sent: list[str] = []
        self.breaks_after = breaks_after

    def publish(self, job_id: str, queue: str) -> None:
        if len(self.sent) >= self.breaks_after:
            raise ConnectionError("broker is away")
        self.sent.append(job_id)


def test_the_relay_sends_each_message_and_keeps_what_it_could_not_send(database: Database, tenant: str) -> None:
    jobs = [submit(database, tenant) for _ in range(3)]
    broker = Broker(breaks_after=2)
    with pytest.raises(ConnectionError):
        relay(database, broker)  # type: ignore[arg-type]
    assert (broker.sent, outbox(database)) == (jobs[:2], jobs[2:])
    broker.breaks_after = 1000
    assert relay(database, broker) == 1  # type: ignore[arg-type]
    assert (broker.sent, outbox(database)) == (jobs, [])


def test_a_lost_message_is_sent_again(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    broker = Broker()
    relay(database, broker)  # type: ignore[arg-type]
    with database.write() as session:
        assert upkeep.announce_again(session, older_than_s=30) == 0  # too early to worry
        session.execute(text("update jobs set not_before = 1"))
    for expected in (1, 0):  # once, not once per round: the new message is still in the outbox
        with database.write() as session:
            assert upkeep.announce_again(session, older_than_s=30) == expected
    relay(database, broker)  # type: ignore[arg-type]
    assert broker.sent == [job_id, job_id]


def test_every_visible_change_bumps_the_version_and_event_numbers_have_no_gaps(database: Database, tenant: str) -> None:
    job_id = submit(database, tenant)
    versions = [_version(database, job_id)]
    held = claimed(database)
    versions.append(_version(database, job_id))
    with database.write() as session:
        attempts.record(session, held, [("stage", {}), ("checkpoint", {})], {"stage": "s", "done": 0, "total": 1})
    versions.append(_version(database, job_id))
    act(database, job_id, lambda s, j: service.set_labels(s, j, {"k": "v"}))
    versions.append(_version(database, job_id))
    succeed(database, held)
    versions.append(_version(database, job_id))
    assert versions == sorted(set(versions))
    with database.read() as session:
        assert list(session.scalars(select(Event.seq).order_by(Event.seq))) == [1, 2, 3, 4, 5]


def _version(database: Database, job_id: str) -> int:
    with database.read() as session:
        return session.execute(select(Job.version).where(Job.id == job_id)).scalar_one()


def test_ids_sort_by_age() -> None:
    ids = [new_id("job") for _ in range(50)]
    assert len(set(ids)) == 50
    assert [i[:16] for i in ids] == sorted(i[:16] for i in ids)


def test_a_job_whose_row_is_locked_for_a_moment_is_claimed_all_the_same(
    database: Database, tenant: str, tmp_path: Path
) -> None:
    """A client changes labels while the worker that was woken looks: the worker must look again, not go away."""
    job_id = submit(database, tenant)
    settings = Settings(home=tmp_path, database_url=str(database.engine.url))
    locked, release = threading.Event(), threading.Event()

    def hold() -> None:
        with database.write() as session:
            worker_repository.lock_job(session, job_id)
            locked.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait(10)
    threading.Timer(0.3, release.set).start()
    held = claim_next(settings, database, MANY)
    holder.join()
    assert held is not None
    assert held.job_id == job_id

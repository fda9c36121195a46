"""A worker's devices are handed out with the jobs' leases, each to one job, and a large job gets its turn."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text

from app.db import Database
from app.jobs import attempts, fleet, needs, upkeep, worker_repository
from app.jobs.attempts import Claim
from app.jobs.fleet import Worker
from app.jobs.models import DeviceLease, Event, Outbox
from app.settings import Settings
from tests.helpers.job_life import FINAL, SPEC, claim, expire_lease, reap, submit, succeed, worker
from workers.engine.spec import CompressionSpec
from workers.tasks import claim_next


def asking(devices: int, device: str = "auto") -> CompressionSpec:
    return CompressionSpec.model_validate({**SPEC.model_dump(), "compute": {"devices": devices, "device": device}})


def leases(database: Database) -> dict[str, str]:
    """Device -> job."""
    with database.read() as session:
        return {lease.device: lease.job_id for lease in session.scalars(select(DeviceLease))}


def test_a_job_holds_as_many_as_it_asks_for(database: Database, tenant: str) -> None:
    host = worker("h", devices=4)
    first, second, third = (submit(database, tenant, spec=asking(n)) for n in (1, 3, 1))
    small, large = claim(database, by=host), claim(database, by=host)
    assert small is not None
    assert large is not None
    assert (small.job_id, small.devices, large.job_id, large.devices) == (first, ("0",), second, ("1", "2", "3"))
    assert leases(database) == {"h/0": first} | {f"h/{n}": second for n in (1, 2, 3)}
    assert claim(database, by=host) is None, "none is free"
    with database.read() as session:
        told = session.scalars(select(Event.data).where(Event.job_id == second, Event.type == "running")).one()
    assert told["devices"] == ["1", "2", "3"]
    succeed(database, large)
    assert leases(database) == {"h/0": first}
    again = claim(database, by=host)
    assert again is not None
    assert (again.job_id, again.devices) == (third, ("1",))


def cancelled(session: Any, held: Claim) -> None:
    job = worker_repository.lock_job(session, held.job_id)
    attempts.transition(session, job, "cancelling")  # type: ignore[arg-type,attr-defined]
    attempts.cancelled(session, held)


@pytest.mark.parametrize(
    "ending",
    [
        lambda session, held: attempts.fail(session, held, FINAL, backoff_s=0),
        lambda session, held: attempts.release(session, held),
        cancelled,
    ],
    ids=["failed", "released", "cancelled"],
)
def test_every_end_gives_them_back(database: Database, tenant: str, ending: Callable[[Any, Claim], None]) -> None:
    submit(database, tenant, spec=asking(2))
    held = claim(database)
    assert held is not None
    assert len(leases(database)) == 2
    with database.write() as session:
        ending(session, held)
    assert leases(database) == {}


def test_those_of_a_dead_worker_come_back_with_its_lease(database: Database, tenant: str) -> None:
    """Another worker of the host has the same GPUs, and leaves them alone until then."""
    dead, successor = (Worker(f"wrk_{n}", "h", "gpu", {"h/0": "0", "GPU-1": "GPU-1"}) for n in (1, 2))
    job_id = submit(database, tenant, spec=asking(2, "cuda"))
    assert claim(database, by=dead) is not None
    submit(database, tenant)
    assert claim(database, by=successor) is None
    expire_lease(database, job_id)
    assert claim(database, by=successor) is None, "the reconciler has not been there"
    assert reap(database) == 1
    held = claim(database, by=successor)
    assert held is not None
    assert (held.job_id, held.fence, held.devices) == (job_id, 2, ("0", "GPU-1"))


def test_a_job_that_no_worker_could_hold_is_in_nobodys_way(database: Database, tenant: str) -> None:
    host = worker("h", devices=2)
    submit(database, tenant, spec=asking(3))
    small = [submit(database, tenant) for _ in range(3)]
    assert [held and held.job_id for held in (claim(database, by=host) for _ in range(3))] == [*small[:2], None]


def test_two_that_hand_out_the_same_device_at_once(database: Database, tenant: str, tmp_path: Path) -> None:
    """Both have seen it free. The database lets one of them, and the other looks again."""
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    submit(database, tenant)
    submit(database, tenant)
    one, other = (Worker(f"wrk_{n}", "h", "gpu", {"GPU-1": "GPU-1"}) for n in (1, 2))
    free_devices, looked = worker_repository.free_devices, list[str]()

    def and_then_another_was_faster(session: Any, by: Worker) -> list[str]:
        found = free_devices(session, by)
        if by is one and not looked:
            looked.extend(found)
            assert claim(database, by=other) is not None
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_repository, "free_devices", and_then_another_was_faster)
        settings = Settings(home=tmp_path, database_url=str(database.engine.url))
        assert claim_next(settings, database, one) is None
    assert looked == ["GPU-1"]
    assert len(leases(database)) == 1


def test_many_claimants_of_one_worker(database: Database, tenant: str) -> None:
    host = worker("h", devices=5)
    jobs = {submit(database, tenant, spec=asking(1 + number % 3)): 1 + number % 3 for number in range(24)}
    done: list[str] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            while len(done) < len(jobs):
                if (held := claim(database, by=host)) is not None:
                    assert len(held.devices) == jobs[held.job_id]
                    succeed(database, held)
                    done.append(held.job_id)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, sorted(done), leases(database)) == ([], sorted(jobs), {})


@dataclass
class Simulated:
    """A worker under a load of small jobs that never ends, in a time of its own: it passes as all rows get older."""

    database: Database
    tenant: str
    host: Worker
    overtaking_ms: int
    now: int = 0
    running: list[tuple[int, str, Claim]] = field(default_factory=list)
    started: dict[str, int] = field(default_factory=dict)

    def submit(self, devices: int, **fields: Any) -> str:
        return submit(self.database, self.tenant, spec=asking(devices), **fields)

    def pass_time(self, until: int) -> None:
        older = "update jobs set created_at = created_at - :ms, not_before = not_before - :ms where status = 'queued'"
        with self.database.write() as session:
            session.execute(text(older), {"ms": until - self.now})
        self.now = until

    def fill(self, rng: random.Random) -> None:
        """Start what can be started, as the supervisors that are idle do."""
        while (held := claim(self.database, by=self.host, overtaking_ms=self.overtaking_ms)) is not None:
            self.started[held.job_id] = self.now
            heapq.heappush(self.running, (self.now + rng.randrange(1_000, 10_000), held.job_id, held))
        assert len(leases(self.database)) <= len(self.host.devices)

    def run(self, rng: random.Random, until: int, wanted: str) -> None:
        """Until `wanted` has started, or to the end; five small jobs always wait."""
        waiting: set[str] = set()
        while self.now < until and wanted not in self.started:
            while len(waiting) < 5:
                waiting.add(self.submit(rng.choice([1, 1, 2])))
            self.fill(rng)
            waiting -= self.started.keys()
            ends_at, _, held = heapq.heappop(self.running)
            self.pass_time(max(ends_at, self.now))
            succeed(self.database, held)


def test_a_large_job_starts_however_many_small_ones_there_are(database: Database, tenant: str) -> None:
    rng = random.Random(0)
    host = Simulated(database, tenant, worker("h", devices=4), overtaking_ms=30_000)
    for _ in range(4):
        host.submit(1)
    host.fill(rng)
    large = host.submit(4)
    host.run(rng, 300_000, large)
    # Small ones went first for the stated time, and what ran then took 10 s at most.
    assert 30_000 < host.started[large] <= 30_000 + 10_000


def test_without_the_rule_it_would_wait_for_ever(database: Database, tenant: str) -> None:
    rng = random.Random(0)
    host = Simulated(database, tenant, worker("h", devices=4), overtaking_ms=10**9)
    for _ in range(4):
        host.submit(1)
    host.fill(rng)
    large = host.submit(4)
    host.run(rng, 100_000, large)
    assert large not in host.started
    assert len(host.started) > 30


def test_what_is_more_urgent_still_goes_first(database: Database, tenant: str) -> None:
    host = worker("h", devices=2)
    running = submit(database, tenant)
    first = claim(database, by=host)
    assert first is not None
    assert first.job_id == running
    large, small = submit(database, tenant, spec=asking(2)), submit(database, tenant)
    with database.write() as session:
        session.execute(text("update jobs set created_at = created_at - 1000"))
    assert claim(database, by=host) is None, "one device is kept for the large job"
    urgent = submit(database, tenant, priority=1)
    second = claim(database, by=host)
    assert second is not None
    assert second.job_id == urgent
    succeed(database, second)
    succeed(database, first)
    assert [held and held.job_id for held in (claim(database, by=host) for _ in range(2))] == [large, None]
    assert small


def test_a_large_job_whose_row_is_locked_is_not_overtaken(database: Database, tenant: str) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite locks no rows")
    host = worker("h", devices=2)
    submit(database, tenant)
    assert claim(database, by=host) is not None
    large = submit(database, tenant, spec=asking(2))
    submit(database, tenant)
    with database.write() as session:
        session.execute(text("update jobs set created_at = created_at - 1000"))
    with database.write() as session:
        worker_repository.lock_job(session, large)
        assert claim(database, by=host) is None


def test_who_looked_in_vain_meanwhile_is_called_again(database: Database, tenant: str) -> None:
    """The small job's message was taken while the devices were kept for the large one."""
    host = worker("h", devices=3)
    submit(database, tenant)
    first = claim(database, by=host)
    assert first is not None
    large, small = submit(database, tenant, spec=asking(2), priority=1), submit(database, tenant)
    with database.write() as session:
        upkeep.forget_sent(session, list(session.scalars(select(Outbox.id))))
    succeed(database, first)
    held = claim(database, by=host)
    assert held is not None
    assert held.job_id == large
    with database.read() as session:
        assert session.scalars(select(Outbox.job_id)).all() == [small]


def test_a_worker_that_was_forgotten_makes_itself_known_again(database: Database) -> None:
    host = worker("h", devices=3)

    def live() -> list[tuple[str, int]]:
        with database.read() as session:
            return sorted((each.kind, each.devices) for each in needs.live(session.connection()))

    def change(write: Callable[[Any], None]) -> None:
        with database.write() as session:
            write(session)

    assert live() == []
    for _ in range(2):
        change(lambda session: fleet.make_known(session, host, ttl_s=60))
        assert live() == [("cpu", 3)]
    change(lambda session: fleet.make_known(session, worker("g", "gpu", 2), ttl_s=60))
    assert live() == [("cpu", 3), ("gpu", 2)]
    change(lambda session: fleet.make_known(session, host, ttl_s=-1))
    assert live() == [("gpu", 2)]
    change(fleet.forget_silent)
    with database.read() as session:
        assert session.execute(text("select name from workers")).scalars().all() == ["g"]
    change(lambda session: fleet.make_known(session, host, ttl_s=60))
    change(lambda session: fleet.forget(session, host))
    assert live() == [("gpu", 2)]


def test_two_processes_of_a_worker_make_it_known_at_once(database: Database) -> None:
    """Neither finds the row; the second's insert meets the first's."""
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    host, errors, inserting = worker("h"), list[Exception](), threading.Event()

    def second() -> None:
        try:
            with database.write() as session:
                fleet.make_known(session, host, ttl_s=60)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=second)
    with database.write() as session:
        fleet.make_known(session, host, ttl_s=60)

        def note(*args: Any) -> None:
            if "INSERT INTO workers" in args[2]:
                inserting.set()

        event.listen(database.engine, "before_cursor_execute", note)
        thread.start()
        assert inserting.wait(10)
    thread.join(10)
    assert (errors, thread.is_alive()) == ([], False)

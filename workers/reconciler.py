"""Repairs the state after crashes: expired leases, unsent messages, sweeps to stop, files of deleted jobs and lost
attempts. Sends what webhooks are to be told, and brings results to where they are to be published.

Start any number, one is enough: `python -m workers.reconciler`. Each chore is safe to repeat and stands alone: one that
fails is logged and tried again next time.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial

import structlog

from app import alive, deployment
from app.db import Database, clock
from app.jobs import fleet, removals, retention, upkeep
from app.logs import configure_logging
from app.metrics import observations
from app.publications.credentials import Credentials
from app.publications.deliverer import AT_ONCE as PUBLISHED_AT_ONCE
from app.publications.deliverer import Deliverer as Publications
from app.queue import Publisher, relay
from app.settings import Settings, get_settings
from app.signing.keys import key_ring
from app.storage import ArtifactStore
from app.sweeps import front
from app.sweeps import repository as sweep_repository
from app.sweeps import service as sweeps
from app.webhooks import service as webhooks
from app.webhooks.deliverer import AT_ONCE, Deliverer
from workers import scratch

log = structlog.get_logger(__name__)

RELAY_S = 1.0
FORGET_S = 3600.0
OVERLAP_MS = 60_000
"""An end is committed a little later than it is dated."""
TURN_S = 5.0
"""A chore that may have much to do stops after so long, and goes on when its turn comes again: leases that expire, and
the probe of this process, do not wait for it."""
GIVE_BACK_S = 3.0
"""How long the end waits for publications to be given back; a longer answer of a place is not waited for."""


class Reconciler:
    """The chores, each with its own period."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url, pool_size=2)
        self.store = ArtifactStore(settings.artifacts_url)
        self.publisher = Publisher(settings)
        self.fronts_seen_at = 0
        """Sweeps are looked at whose children have ended since, ms. At first all are: somebody may have been killed."""
        self.fronts: set[str] = set()
        """Sweeps that are still to be looked at."""

    def send_messages(self) -> None:
        while relay(self.database, self.publisher):
            pass

    def reap(self) -> None:
        """Requeue or fail jobs whose lease has expired."""
        lost = self.database.transact(lambda session: upkeep.reap(session, backoff_s=self.settings.retry_backoff_s))
        for job_id, attempt in lost:
            log.warning("lease_expired", job_id=job_id, attempt=attempt)

    def announce_again(self) -> None:
        older_than_s = self.settings.redispatch_s
        if count := self.database.transact(lambda session: upkeep.announce_again(session, older_than_s=older_than_s)):
            log.info("announced_again", jobs=count)

    def stop_sweeps(self) -> None:
        """Cancel jobs by stop rules, where the worker that ended the decisive child died before it did."""
        with self.database.read() as session:
            sweep_ids = sweep_repository.with_stop_rule_and_active_jobs(session)
        for sweep_id in sweep_ids:
            if stopped := self.database.transact(partial(sweeps.enforce_stop, sweep_id=sweep_id)):
                log.info("sweep_stopped", sweep_id=sweep_id, jobs=len(stopped))

    def forget_keys(self) -> None:
        self.database.transact(upkeep.forget_idempotency_keys)

    def remove_files(self) -> None:
        """Delete the files of deleted jobs and of attempts without a result, as the database has recorded them."""
        removals.work_off(self.database, self.store, for_s=TURN_S)

    def beat(self) -> None:
        """For `espalier probe`: its rounds go on."""
        alive.beat(self.settings, "reconciler")

    def add_up(self) -> None:
        """Measurements into the totals that /metrics shows."""
        while self.database.transact(observations.add_up):
            pass

    def apply_retention(self) -> None:
        """Take the files from results whose policies say so, and delete them."""
        with self.database.read() as session:
            self.fronts |= {*sweep_repository.with_fronts_since(session, self.fronts_seen_at)}
            self.fronts_seen_at = clock(session) - OVERLAP_MS
        end = time.monotonic() + TURN_S
        for sweep_id in sorted(self.fronts):
            if time.monotonic() > end:
                break
            try:
                self.database.transact(partial(front.mark, sweep_id=sweep_id))
                self.fronts.discard(sweep_id)
            except Exception as error:  # the others' files, and those that are due, do not wait for this one
                log.warning("front_not_found", sweep_id=sweep_id, error=repr(error))
        end = time.monotonic() + TURN_S
        while (job_id := self.database.transact(retention.remove_next)) is not None:
            log.info("files_removed", job_id=job_id)
            removals.work_off_now(self.database, self.store, [job_id])
            if time.monotonic() > end:
                break

    def forget_workers(self) -> None:
        self.database.transact(fleet.forget_silent)

    def forget_deliveries(self) -> None:
        self.database.transact(webhooks.forget_old)

    def forget_removals(self) -> None:
        self.database.transact(removals.forget)

    def sweep_scratch(self) -> None:
        """Remove scratch of ended and deleted jobs; a failed job's finished blocks wait a day for a retry."""
        found = scratch.idle(self.settings.work_dir)
        with self.database.read() as session:
            job_ids = removals.scratch_to_forget(session, found)
        for job_id in job_ids:
            scratch.forget_job(self.settings.work_dir, job_id)


def main() -> None:
    settings = get_settings()
    configure_logging(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reconciler = Reconciler(settings)
    deployment.check_or_exit(reconciler.database, reconciler.store, settings.work_dir, stop)
    chores: list[tuple[Callable[[], None], float]] = [
        (reconciler.send_messages, RELAY_S),
        (reconciler.reap, settings.reconcile_s),
        (reconciler.announce_again, settings.reconcile_s),
        (reconciler.stop_sweeps, settings.reconcile_s),
        (reconciler.apply_retention, settings.reconcile_s),
        (reconciler.remove_files, settings.reconcile_s),
        (reconciler.sweep_scratch, settings.reconcile_s),
        (reconciler.add_up, settings.reconcile_s),
        (reconciler.beat, alive.EVERY_S),
        (reconciler.forget_keys, FORGET_S),
        (reconciler.forget_removals, FORGET_S),
        (reconciler.forget_deliveries, FORGET_S),
        (reconciler.forget_workers, FORGET_S),
    ]
    # On a thread of its own: a receiver that does not answer holds up nothing else.
    deliverer = Deliverer(Database(settings.database_url, pool_size=AT_ONCE), settings)
    threading.Thread(target=deliverer.run, args=[stop], name="webhooks", daemon=True).start()
    publications = Publications(
        Database(settings.database_url, pool_size=2 * PUBLISHED_AT_ONCE),
        reconciler.store,
        Credentials(settings.credentials),
        key_ring(settings),
    )
    publishing = [
        threading.Thread(target=publications.run, args=[stop], name="publications", daemon=True)
        for _ in range(PUBLISHED_AT_ONCE)
    ]
    for thread in publishing:
        thread.start()
    due = [0.0] * len(chores)
    log.info("reconciler_started")
    while not stop.is_set():
        for index, (chore, every_s) in enumerate(chores):
            if time.monotonic() >= due[index] and not stop.is_set():
                try:
                    chore()
                except Exception as error:  # the database or the broker is away; the next round tries again
                    log.warning("chore_failed", chore=chore.__name__, error=repr(error))
                due[index] = time.monotonic() + every_s
        stop.wait(0.2)
    for thread in publishing:
        thread.join(GIVE_BACK_S)


if __name__ == "__main__":
    main()

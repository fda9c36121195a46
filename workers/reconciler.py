"""Repairs what a crash left: expired leases, unsent messages, sweeps to stop, files nobody owns.

Start any number, one is enough: `python -m workers.reconciler`. Each chore is safe to repeat and stands alone: one that
fails is logged and tried again next time.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import structlog

from app.db import Database
from app.jobs import repository, service
from app.jobs.models import ACTIVE
from app.logs import configure_logging
from app.queue import Publisher, relay
from app.settings import Settings, get_settings
from app.storage import ArtifactStore
from app.sweeps import repository as sweep_repository
from app.sweeps import service as sweeps
from workers import scratch

log = structlog.get_logger(__name__)

RELAY_S = 1.0
ORPHANS_S = 3600.0
FAILED_KEPT_S = 24 * 3600.0


class Reconciler:
    """The chores, each by its own clock."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url, pool_size=2)
        self.store = ArtifactStore(settings.artifacts_url)
        self.publisher = Publisher(settings)

    def send_messages(self) -> None:
        while relay(self.database, self.publisher):
            pass

    def reap(self) -> None:
        """Take jobs back from silent workers, and remove what their attempts had uploaded."""
        with self.database.write() as session:
            lost = service.reap(session, backoff_s=self.settings.retry_backoff_s)
        for held in lost:
            log.warning("lease_expired", job_id=held.job_id, attempt=held.attempt)
            self.store.delete_files(held.tenant_id, held.job_id, held.attempt, held.fence)

    def announce_again(self) -> None:
        with self.database.write() as session:
            if count := service.announce_again(session, older_than_s=self.settings.redispatch_s):
                log.info("announced_again", jobs=count)

    def stop_sweeps(self) -> None:
        """Cancel what stop rules say and the worker that ended the decisive child did not live to cancel."""
        with self.database.read() as session:
            sweep_ids = sweep_repository.to_enforce(session)
        for sweep_id in sweep_ids:
            with self.database.write() as session:
                if stopped := sweeps.enforce_stop(session, sweep_id):
                    log.info("sweep_stopped", sweep_id=sweep_id, jobs=len(stopped))

    def forget_keys(self) -> None:
        with self.database.write() as session:
            service.forget_idempotency_keys(session)

    def sweep_scratch(self) -> None:
        """Remove scratch that no attempt will use; a failed job's finished blocks wait a day for a retry."""
        found = scratch.idle(self.settings.work_dir)
        with self.database.read() as session:
            statuses = repository.statuses(session, list(found))
        for job_id, idle_s in found.items():
            status = statuses.get(job_id)
            # A minute's grace: the folder may be an attempt's that is about to notice it was fenced.
            kept_s = {"failed": FAILED_KEPT_S}.get(status or "", 60.0)
            if status not in ACTIVE and idle_s > kept_s:
                scratch.forget_job(self.settings.work_dir, job_id)

    def sweep_store(self) -> None:
        """Remove the files of jobs that no longer exist: a delete interrupted after its commit."""
        for tenant_id, job_id in list(self.store.list_jobs()):
            with self.database.read() as session:
                gone = not repository.exists(session, job_id)
            if gone:
                log.info("orphan_removed", job_id=job_id)
                self.store.delete_job(tenant_id, job_id)


def main() -> None:
    settings = get_settings()
    configure_logging(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reconciler = Reconciler(settings)
    chores: list[tuple[Callable[[], None], float]] = [
        (reconciler.send_messages, RELAY_S),
        (reconciler.reap, settings.reconcile_s),
        (reconciler.announce_again, settings.reconcile_s),
        (reconciler.stop_sweeps, settings.reconcile_s),
        (reconciler.sweep_scratch, settings.reconcile_s),
        (reconciler.forget_keys, ORPHANS_S),
        (reconciler.sweep_store, ORPHANS_S),
    ]
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


if __name__ == "__main__":
    main()

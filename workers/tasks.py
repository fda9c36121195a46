"""One attempt at a job, from claim to finish: the one file where database, queue, store and process meet.

    message -> claim -> supervise the runner -> upload its files -> finish

Whatever happens, the job is left in a state from which it goes on: finished here, given back, or found by the
reconciler when its lease runs out.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

import structlog
from celery import signals
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from app.db import Database, is_outage
from app.errors import InvalidTransition
from app.failure import Failure
from app.jobs import attempts, removals, results, worker_repository
from app.jobs.attempts import Claim, Fenced
from app.jobs.fleet import Worker
from app.keys.repository import tenant_name
from app.queue import RUN_JOB
from app.settings import Settings, get_settings
from app.storage import AlreadyStored, ArtifactStore, Damaged, StorageError
from app.sweeps import repository as sweep_repository
from app.sweeps import service as sweeps
from workers import devices, scratch
from workers.celery_app import app, draining
from workers.children import Child, Spawned, runner_command
from workers.engine.errors import CheckpointMismatch, DiskFull
from workers.engine.report import FileEntry, Manifest, Origin, Report
from workers.failures import of_bug, of_exit, of_storage
from workers.logs import LogShipper
from workers.presence import database, this_worker
from workers.progress import Finished, Progress
from workers.supervisor import Exit, Order, supervise
from workers.tracing import Trace
from workers.warm import Warm

log = structlog.get_logger(__name__)

T = TypeVar("T")
LOOKS, LOOK_AGAIN_S = 40, 0.05


@cache
def _warm() -> Warm:
    return Warm()


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _warm_up(**_: Any) -> None:
    if get_settings().worker_warm:
        _warm()


def _start_runner(arguments: list[str], log_file: IO[bytes]) -> Child:
    if get_settings().worker_warm:
        return _warm().start(arguments, log_file)
    return Spawned(runner_command(arguments), log_file)


@app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Claim the next job, which need not be `job_id`, and make one attempt at it; then the next, until none is due.

    The devices that an attempt has given back may be what a job waited for whose message has been taken. A message of a
    job that only others can take is passed on to them.
    """
    settings = get_settings()
    store = ArtifactStore(settings.artifacts_url)  # before a job depends on it
    # A message may have been taken before the order to stop; another worker gets the job.
    while not draining() and (held := claim_next(settings, database(), this_worker())) is not None:
        with structlog.contextvars.bound_contextvars(job_id=held.job_id, attempt=held.attempt):
            Attempt(settings, database(), store, held).run()
    if not draining():
        database().transact(lambda session: attempts.pass_on(session, this_worker()))


def claim_next(settings: Settings, database: Database, worker: Worker) -> Claim | None:
    """Claim the next job, or None if none is due that enough devices are free for.

    A claim passes over rows that somebody has locked for a moment: a client changing labels, another worker. The
    message that woke us may be that job's only one, so look again while a due job is there.
    """
    overtaking_ms = int(settings.overtaking_s * 1000)

    def look(session: Session) -> tuple[Claim | None, bool]:
        held = attempts.claim(session, worker, ttl_s=settings.lease_ttl_s, overtaking_ms=overtaking_ms)
        return held, held is None and worker_repository.any_to_run(session, worker, overtaking_ms=overtaking_ms)

    for _ in range(LOOKS):
        with suppress(IntegrityError):  # another worker, which shares a device with this one, has just handed it out
            held, again = database.transact(look)
            if not again:
                return held
        time.sleep(LOOK_AGAIN_S)
    return None


class Attempt:
    """The work of one claim. Every write to the database is fenced by it."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore, held: Claim) -> None:
        self.settings, self.database, self.store, self.held = settings, database, store, held
        self.folder = scratch.attempt_dir(settings.work_dir, held.job_id, held.fence)
        self.checkpoint = scratch.checkpoint_dir(settings.work_dir, held.job_id)
        self.logs = LogShipper(store, self._scope, self.folder / "runner.log")
        self.progress = Progress()
        self.trace = Trace(held, this_worker().name)
        self.uploaded: list[str] = []
        """Keys of the store that this attempt has made."""
        self.renewed_at = time.monotonic()

    def run(self) -> None:
        with self.trace.attempt():
            self._run_or_leave()

    def _run_or_leave(self) -> None:
        log.info("attempt_started", model=self.held.spec["model"]["id"])
        try:
            self._run()
        except Fenced:
            self.trace.ended("fenced")
            log.warning("attempt_fenced")  # the job went on without us, or ended by a commit whose answer was lost
            self._forget_files_if_ended()
            scratch.forget_attempt(self.settings.work_dir, self.held.job_id, self.held.fence)

    def _run(self) -> None:
        try:
            end = self._compress()
            self.logs.ship()
            self._conclude(end)
        except Fenced:
            raise
        except (OSError, StorageError, AlreadyStored, Damaged) as error:
            self._fail(of_storage(error))
        except Exception as error:  # a bug, which another attempt would raise again
            log.exception("attempt_crashed")
            self.logs.say_and_ship(traceback.format_exc())
            self._fail(of_bug(error))

    def _compress(self) -> Exit:
        """Run the engine in a child process until it ends or is stopped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        (self.folder / "spec.json").write_text(json.dumps(self.held.spec))
        (self.folder / "origin.json").write_text(self._origin().model_dump_json())
        arguments = [str(self.folder), "--checkpoint", str(self.checkpoint)]
        arguments += ["--models", str(self.settings.models_dir), "--data", str(self.settings.data_dir)]
        arguments += ["--cache", str(self.settings.cache_dir)]
        arguments += ["--points-every", str(self.settings.resume_point_s)]
        worker, taken = this_worker(), self.held.devices
        arguments += ["--gpus", ",".join(taken) if worker.kind == "gpu" else ""]
        threads = devices.threads(self.settings, len(taken), len(worker.devices))
        arguments += ["--threads", str(threads)] if threads else []
        return supervise(
            lambda log_file: _start_runner(arguments, log_file),
            log=self.folder / "runner.log",
            on_tick=self._tick,
            tick_s=self.settings.heartbeat_s,
            grace_s=self.settings.cancel_grace_s,
        )

    def _origin(self) -> Origin:
        """The job and tenant that the report names."""

        def read() -> str:
            with self.database.read() as session:
                return tenant_name(session, self.held.tenant_id)

        return Origin(job_id=self.held.job_id, asked_by=self._through_outages(read), attempt=self.held.attempt)

    def _tick(self, events: list[dict[str, Any]]) -> Order:
        """Renew the lease, record what happened, ship the log; learn what to do next."""
        rows, shown = self.progress.digest(events)
        finished = self.progress.finished()
        self.trace.stages(finished)

        def beat(session: Session) -> attempts.Orders:
            orders = attempts.renew(session, self.held, ttl_s=self.settings.lease_ttl_s)
            if rows or shown:
                attempts.record(session, self.held, rows, shown, _times(finished))
            return orders

        try:
            orders = self.database.transact(beat)
        except Fenced:
            return Order.ABANDON
        except DBAPIError as error:
            if not is_outage(error):
                raise
            # The lease outlives a short outage of the database; past it somebody else may have the job.
            log.warning("heartbeat_failed", error=str(error.orig))
            return Order.ABANDON if self._lease_is_over() else Order.CONTINUE
        self.renewed_at = time.monotonic()
        self.logs.ship_now_and_then()
        if orders.cancel:
            return Order.CANCEL
        if orders.overdue:
            return Order.TIMEOUT
        if orders.pause:
            return Order.PAUSE
        return Order.DRAIN if draining() else Order.CONTINUE

    def _conclude(self, end: Exit) -> None:
        match end.order:
            case Order.ABANDON:
                raise Fenced
            case Order.CANCEL:
                self._cancelled()
            case Order.PAUSE if end.returncode == 0:  # it was done before it was told
                self._publish()
            case Order.DRAIN | Order.PAUSE:
                self._end_stage()
                self._finish(lambda session: attempts.release(session, self.held), keep_checkpoint=True)
                self.trace.ended("paused" if end.order is Order.PAUSE else "released")
            case Order.CONTINUE if end.returncode == 0:
                self._publish()
            case _:
                self._fail(of_exit(end, deadline_s=self.held.deadline_s))

    def _publish(self) -> None:
        """Upload the attempt's files under its own keys, then make them the job's."""
        model_dir = self.folder / "model"
        manifest_bytes = (model_dir / "manifest.json").read_bytes()
        manifest_sha256 = hashlib.sha256(manifest_bytes).hexdigest()
        try:
            made = Manifest.model_validate_json(manifest_bytes)
            report = Report.model_validate_json((model_dir / "report.json").read_bytes())
        except ValidationError as error:
            raise Damaged(f"the {error.title} of the result cannot be read on the worker's disk any more") from error
        entries = [*made.files, FileEntry(path="manifest.json", bytes=len(manifest_bytes), sha256=manifest_sha256)]
        files = [(entry, self.store.file_key(*self._scope, entry.path)) for entry in entries]
        damaged: list[str] = []

        def upload(stop: threading.Event) -> None:
            for entry, key in files:
                if not stop.is_set():
                    self.store.put_file(key, model_dir / entry.path)
                    self.uploaded.append(key)
                    self.store.check_file(key, model_dir / entry.path, entry.sha256)
            damaged.extend(self._damaged(entries, model_dir))

        order = self._while_beating(upload)
        if order is Order.ABANDON:
            raise Fenced
        if order is Order.CANCEL:
            return self._cancelled()
        finished = _times(self._end_stage())
        try:
            self._finish(
                lambda session: attempts.succeed(
                    session,
                    self.held,
                    report=report,
                    manifest_sha256=manifest_sha256,
                    files=files,
                    finished=finished,
                    damaged=damaged,
                ),
                keep_checkpoint=False,
            )
            self.trace.ended("succeeded")
            log.info("attempt_succeeded")
            removals.work_off_now(self.database, self.store, [self.held.job_id])  # what others have already
        except InvalidTransition:  # a cancel came between the last heartbeat and here
            self._cancelled()

    def _damaged(self, entries: Sequence[FileEntry], model_dir: Path) -> Iterator[str]:
        """Keys of files of other jobs that should be equal to ours, and are not any more."""
        keys: dict[str, str] = {}
        with suppress(OperationalError, InterfaceError), self.database.read() as session:  # the finish waits for it
            keys = results.stored(session, self.held.tenant_id, [entry.sha256 for entry in entries])
        for entry in entries:
            if (key := keys.get(entry.sha256)) is not None:
                try:
                    self.store.check_file(key, model_dir / entry.path, entry.sha256)
                except Damaged as error:
                    log.warning("stored_file_damaged", key=key, error=str(error))
                    yield key

    def _while_beating(self, work: Callable[[threading.Event], None]) -> Order:
        """Run `work` in a thread while the lease is renewed. To stop it, its event is set and its end awaited."""
        order = self._tick([{"event": "stage", "at": time.monotonic(), "stage": "upload"}])
        stop, errors = threading.Event(), list[BaseException]()

        def target() -> None:
            try:
                work(stop)
            except BaseException as error:  # re-raised below, in the task's own thread
                errors.append(error)

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                if order in (Order.CANCEL, Order.ABANDON):
                    stop.set()
                thread.join(self.settings.heartbeat_s)
                if thread.is_alive() and not stop.is_set():
                    order = self._tick([])
        finally:  # where a heartbeat raises, too: what is uploaded after that, nobody would remove
            stop.set()
            thread.join()
        if errors:
            raise errors[0]
        return order

    def _end_stage(self, failure: Failure | None = None) -> list[Finished]:
        """The stage that the attempt is in is over, and how."""
        finished = self.progress.finish_stage(time.monotonic())
        self.trace.stages(finished, failure)
        return finished

    def _cancelled(self) -> None:
        self._end_stage()
        self.trace.ended("cancelled")
        self._finish(lambda session: attempts.cancelled(session, self.held), keep_checkpoint=False)
        self._forget_files()

    def _fail(self, failure: Failure) -> None:
        log.warning("attempt_failed", code=failure.code, message=failure.message)
        self._end_stage(failure)
        self.trace.ended("failed", failure)
        self.logs.say_and_ship(f"{failure.code}: {failure.message}\n{failure.hint}\n")
        # Finished blocks wait for the next attempt, but not those made before an upgrade or on another device, which
        # no attempt will accept, nor those that fill the disk when nobody is going to use them.
        disk_full = failure.code == DiskFull.code
        keep_checkpoint = failure.code != CheckpointMismatch.code and not (disk_full and self.held.last)
        if disk_full:  # before the last write, which may need the room
            self._forget_scratch(keep_checkpoint=keep_checkpoint)
        self._finish(
            lambda session: attempts.fail(session, self.held, failure, backoff_s=self.settings.retry_backoff_s),
            keep_checkpoint=keep_checkpoint,
        )
        self._forget_files()

    def _finish(self, write: Callable[[Session], None], *, keep_checkpoint: bool) -> None:
        """The attempt's last write; then the scratch is cleared."""
        self._through_outages(lambda: self.database.transact(write))
        self._stop_sweep()
        self._forget_scratch(keep_checkpoint=keep_checkpoint)

    def _through_outages(self, ask: Callable[[], T]) -> T:
        """The value of `ask`, which is repeated through an outage of the database for as long as the lease lasts.
        Raises Fenced after that."""
        while True:
            try:
                return ask()
            except DBAPIError as error:
                if not is_outage(error):
                    raise
                if self._lease_is_over():
                    raise Fenced from error
                log.warning("database_away", error=str(error.orig))
            time.sleep(self.settings.heartbeat_s)

    def _forget_scratch(self, *, keep_checkpoint: bool) -> None:
        scratch.forget_attempt(self.settings.work_dir, self.held.job_id, self.held.fence)
        if not keep_checkpoint:
            scratch.forget_job(self.settings.work_dir, self.held.job_id)

    def _stop_sweep(self) -> None:
        """Apply the sweep's stop rules, before this worker takes another job that they may cancel."""

        def enforce(session: Session) -> None:
            if sweep_id := sweep_repository.with_stop_rule_of_job(session, self.held.job_id):
                sweeps.enforce_stop(session, sweep_id)

        try:
            self.database.transact(enforce)
        except DBAPIError as error:  # the reconciler does it
            log.warning("stop_rule_failed", error=str(error.orig))

    def _forget_files(self) -> None:
        """Remove this attempt's uploads, after its end is recorded. The reconciler removes those that are left."""
        try:
            self.store.delete(self.uploaded)
        except (OSError, StorageError) as error:
            log.warning("files_left_behind", error=repr(error))

    def _forget_files_if_ended(self) -> None:
        try:
            with self.database.read() as session:
                ended = attempts.ended_without_result(session, self.held)
        except DBAPIError as error:
            log.warning("files_left_behind", error=repr(error))
            return
        if ended:
            self._forget_files()

    def _lease_is_over(self) -> bool:
        return time.monotonic() - self.renewed_at > self.settings.lease_ttl_s

    @property
    def _scope(self) -> tuple[str, str, int, int]:
        return self.held.tenant_id, self.held.job_id, self.held.attempt, self.held.fence


def _times(finished: list[Finished]) -> list[tuple[str, float]]:
    return [(stage.stage, stage.seconds) for stage in finished]

"""Who this worker is, how many jobs it runs at once, and that it is alive.

One worker is Celery's main process and the pool that is forked from it: one supervisor for each device.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from functools import cache, partial
from typing import Any

import structlog
from billiard import current_process
from celery import signals
from sqlalchemy.exc import SQLAlchemyError

from app import alive
from app.db import Database
from app.ids import new_id
from app.jobs import fleet
from app.jobs.fleet import Worker
from app.logs import configure_logging
from app.prices import parsed
from app.settings import get_settings
from workers import devices
from workers.celery_app import draining
from workers.engine.contracts.params import STAGES
from workers.engine.host import total_memory
from workers.engine.registry import methods
from workers.use import Use

log = structlog.get_logger(__name__)


@cache
def database() -> Database:
    """Of this process of the pool."""
    return Database(get_settings().database_url, pool_size=2)


@cache
def this_worker() -> Worker:
    worker_id, host = new_id("wrk"), socket.gethostname()
    kind, names = devices.found(get_settings())
    keys = devices.keys(names, owner=host if kind == "gpu" else worker_id)
    return Worker(
        worker_id,
        f"{host}:{os.getpid()}",
        kind,
        keys,
        devices.hardware() if kind == "gpu" else {},
        total_memory(),
        {stage: [method.name for method in methods(stage)] for stage in STAGES},
        parsed(get_settings().prices),
        get_settings().currency,
    )


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _count_devices(sender: Any, **_: Any) -> None:
    """As many supervisors as devices, whatever the command line says; before the pool is forked, so that all are of one
    worker.
    """
    sender.concurrency = len(this_worker().devices)
    if not sender.concurrency:
        configure_logging(get_settings().log_level)
        log.error("refused", detail=devices.NO_GPU)
        raise SystemExit(2)


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _begin(**_: Any) -> None:
    database()
    threading.Thread(target=_stay_known, daemon=True).start()
    threading.Thread(target=_beat, daemon=True).start()


def _beat() -> None:
    """For `espalier probe`, also while the database does not answer."""
    while True:
        with suppress(OSError):  # a full disk is no reason to be ended
            alive.beat(get_settings(), "worker")
        time.sleep(alive.EVERY_S)


def _stay_known() -> None:
    """Three times in a lease's time, until the worker is told to stop. One process of the pool looks at the devices."""
    ttl_s, worker = get_settings().lease_ttl_s, this_worker()
    looks = getattr(current_process(), "index", 0) == 0
    use = Use(worker.devices.values() if worker.kind == "gpu" else ()) if looks else None
    while not draining():
        seen = use.look() if use else None
        try:
            database().transact(partial(fleet.make_known, worker=worker, ttl_s=ttl_s, use=seen))
        except SQLAlchemyError as error:
            log.warning("worker_heartbeat_failed", error=str(error))
        time.sleep(ttl_s / 3)


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _end(**_: Any) -> None:
    if draining():
        with suppress(SQLAlchemyError):  # it counts as alive a little longer then
            database().transact(lambda session: fleet.forget(session, this_worker()))

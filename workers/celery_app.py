"""The Celery application and its settings. Start: `celery -A workers.celery_app worker -P prefork`.

Never imports torch: the work runs in a child process of the task, so a crash there is an exit code here.
"""

from __future__ import annotations

import mmap
import os
import threading
from multiprocessing import get_context
from typing import Any

from celery import Celery, signals
from kombu import Queue

from app import deployment
from app.db import Database
from app.logs import configure_logging
from app.queue import celery_config
from app.settings import get_settings
from app.storage import ArtifactStore
from workers.children import die_with_parent

settings = get_settings()

app = Celery("espalier", include=["workers.tasks"])
app.conf.update(celery_config(settings))
app.conf.update(
    # The claim in the database is the acknowledgement. Late acks on Redis re-run long tasks on every visibility
    # timeout and connection blip; a lost message costs at most `redispatch_s`.
    task_acks_late=False,
    task_reject_on_worker_lost=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=settings.broker_url.startswith(("redis", "rediss")),
    worker_pool_start_method="fork",  # what `draining` is shared by
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # The supervisor enforces deadlines: Celery's would kill the supervisor and leave its child.
    task_time_limit=None,
    task_soft_time_limit=None,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    task_create_missing_queues=False,
    task_queues=[Queue("any"), Queue("gpu")],
)


_draining = mmap.mmap(-1, 1)
"""One byte shared by this process and the pool's children, which are forked from it."""


def draining() -> bool:
    """Whether this worker has been asked to stop."""
    return _draining[0] != 0


@signals.setup_logging.connect
def _our_logging(**_: Any) -> None:
    configure_logging(settings.log_level)


@signals.worker_init.connect
def _check_deployment(**_: Any) -> None:
    """Before the first message is taken: is this the store of this database?"""
    # In a process of its own: obstore's threads, once begun here, would be missing in the pool's forked children.
    process = get_context("fork").Process(target=_check, args=(os.getpid(),))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _check(parent: int) -> None:
    die_with_parent(parent)
    configure_logging(settings.log_level)
    database = Database(settings.database_url, pool_size=1)
    deployment.check_or_exit(database, ArtifactStore(settings.artifacts_url), settings.work_dir, threading.Event())


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    # SIGTERM reaches only the main process; the task, in the pool's child, sees the byte at its next heartbeat.
    _draining[0] = 1

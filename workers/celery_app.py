"""The Celery object and its few decisions. Start: `celery -A workers.celery_app worker -P prefork -c 1`.

Never imports torch: the work runs in a child process of the task, so a crash there is an exit code here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery, signals
from kombu import Queue

from app.logs import configure_logging
from app.queue import celery_config
from app.settings import get_settings

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
    worker_concurrency=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Deadlines are the supervisor's: Celery's would kill the supervisor and leave its child.
    task_time_limit=None,
    task_soft_time_limit=None,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    task_create_missing_queues=False,
    task_queues=[Queue("any"), Queue("gpu")],
)


def drain_flag(worker_pid: int) -> Path:
    """Exists once the worker whose main process is `worker_pid` has been asked to stop."""
    return settings.work_dir / f".drain-{worker_pid}"


@signals.setup_logging.connect
def _our_logging(**_: Any) -> None:
    configure_logging(settings.log_level)


@signals.worker_init.connect
def _forget_old_flag(**_: Any) -> None:
    drain_flag(os.getpid()).unlink(missing_ok=True)


@signals.worker_shutting_down.connect
def _raise_flag(**_: Any) -> None:
    # SIGTERM reaches only the main process; the task, in the pool's child, sees the flag at its next heartbeat.
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    drain_flag(os.getpid()).touch()


@signals.worker_shutdown.connect
def _lower_flag(**_: Any) -> None:
    drain_flag(os.getpid()).unlink(missing_ok=True)

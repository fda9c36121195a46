"""The way to the workers: publish a job id to Celery by task name. The only mention of Celery in `app`.

A message means "look for a due job": losing or doubling one is harmless, because the claim decides who runs what.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import structlog

from app.db import Database
from app.jobs import upkeep, upkeep_repository
from app.settings import Settings

RUN_JOB = "espalier.run_job"
GATHER_S = 0.1
"""Between two rounds of the relay: what is submitted meanwhile is published together and forgotten in one commit."""
log = structlog.get_logger(__name__)


def celery_config(settings: Settings) -> dict[str, Any]:
    """Broker settings that the API's publisher and the workers must agree on."""
    config: dict[str, Any] = {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        # One quick retry: the outbox does the rest.
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_max": 0.2},
        "task_default_queue": "any",
    }
    if settings.broker_url.startswith("filesystem://"):
        from kombu.transport import TRANSPORT_ALIASES

        TRANSPORT_ALIASES["filesystem"] = "app.file_broker:Transport"
        folder = Path(settings.broker_url.removeprefix("filesystem://"))
        for name in ("messages", "control"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        config["broker_url"] = "filesystem://"
        config["broker_transport_options"] = {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.1,
        }
    else:
        config["broker_transport_options"] = {
            "visibility_timeout": 3600,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "health_check_interval": 25,
            "retry_on_timeout": True,
            "global_keyprefix": "espalier:",
        }
    return config


class Publisher:
    """Sends messages; one per process and thread. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        from celery import Celery  # 0.2 s, not spent before the first job

        self._celery = Celery("espalier", set_as_current=False)
        self._celery.conf.update(celery_config(settings))

    def publish(self, job_id: str, queue: str) -> None:
        """Raises whatever the broker's client raises (OSError, kombu's OperationalError, …) when it cannot."""
        # The queue needs no declaring: on both brokers it is there as soon as something is in it.
        self._celery.send_task(RUN_JOB, args=[job_id], queue=queue, declare=())

    def close(self) -> None:
        self._celery.close()


def relay(database: Database, publisher: Publisher, *, limit: int = 100) -> int:
    """Publish the outbox's due messages and forget them; returns how many it forgot. Run by any number of processes.

    Publishes before it forgets, so a crash between the two doubles a message and never loses one.
    """
    with database.read() as session:
        due = upkeep_repository.due_messages(session, limit=limit)
    sent: list[int] = []
    forgotten = 0
    try:
        for message_id, job_id, queue in due:
            publisher.publish(job_id, queue)
            sent.append(message_id)
    finally:
        if sent:
            forgotten = database.transact(lambda session: upkeep.forget_sent(session, sent))
    return forgotten


class Relay:
    """A thread of the API that publishes as soon as a job is committed. The reconciler sends what it misses."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Call after the commit that wrote an outbox row."""
        self._wake.set()

    def stop(self) -> None:
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        publisher = Publisher(self._settings)
        while not self._stop:
            self._wake.wait(timeout=1)
            self._wake.clear()
            try:
                while relay(self._database, publisher):
                    time.sleep(GATHER_S)
            except Exception as error:  # a dead broker or database must not end the thread; it tries again in a second
                log.warning("relay_failed", error=repr(error))
                self._stop or threading.Event().wait(1)
        publisher.close()

"""The embedded service's broker: what kombu's own transport of files loses between processes must not be lost here."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from queue import Empty

import pytest
from kombu import Connection, Exchange, Queue

from app.queue import celery_config
from app.settings import Settings

EACH, WRITERS, READERS = 40, 2, 2
PADDING = "x" * 200_000
"""Long enough to be seen half written."""


def channel_of(home: Path) -> tuple[Connection, Queue]:
    config = celery_config(Settings(home=home))
    connection = Connection(config["broker_url"], transport_options=config["broker_transport_options"])
    return connection, Queue("any", Exchange("any"), routing_key="any")(connection)


def write(home: Path, writer: int) -> None:
    connection, queue = channel_of(home)
    with connection:
        queue.declare()
        producer = connection.Producer(serializer="json")
        for number in range(EACH):
            producer.publish([f"{writer}/{number}", PADDING], exchange=queue.exchange, routing_key="any")


def read(home: Path, found: multiprocessing.Queue[str]) -> None:
    _, queue = channel_of(home)
    queue.declare()
    while True:
        if message := queue.get(no_ack=True):
            found.put(message.payload[0])


def test_writers_and_readers_at_once_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    found = spawn.Queue()
    readers = [spawn.Process(target=read, args=(tmp_path, found), daemon=True) for _ in range(READERS)]
    writers = [spawn.Process(target=write, args=(tmp_path, n)) for n in range(WRITERS)]
    for process in readers + writers:
        process.start()
    try:
        messages = [found.get(timeout=60) for _ in range(WRITERS * EACH)]
        assert sorted(messages) == sorted(f"{n}/{k}" for n in range(WRITERS) for k in range(EACH))
        with pytest.raises(Empty):
            found.get(timeout=0.2)
        assert all(reader.is_alive() for reader in readers)
    finally:
        for process in readers + writers:
            process.kill()
            process.join()
            process.close()
        found.close()


def test_a_second_folder_in_one_process_gets_its_own_queues(tmp_path: Path) -> None:
    for home in (tmp_path / "one", tmp_path / "two"):
        write(home, 0)
        assert len(list((home / "broker/messages").iterdir())) == EACH


def test_messages_come_oldest_first_and_a_file_that_is_none_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 0)
    folder = tmp_path / "broker/messages"
    (folder / f"{0:020d}_half.any.msg").write_bytes(b'{"body"')
    (folder / f"{1:020d}_other.any.tmp").write_text("being written")
    connection, queue = channel_of(tmp_path)
    with connection:
        assert [queue.get(no_ack=True).payload[0] for _ in range(3)] == ["0/0", "0/1", "0/2"]
    assert not (folder / f"{0:020d}_half.any.msg").exists()
    assert (folder / f"{1:020d}_other.any.tmp").exists()

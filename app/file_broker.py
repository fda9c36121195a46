"""Messages as files of one folder: kombu's filesystem transport, made safe for several processes.

kombu writes a message under its final name, so a worker that looks in between reads half a message, and celery ends
that worker; its table of queues has the same gap. Here a message appears whole, and the table has a lock.
"""

from __future__ import annotations

import fcntl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem, virtual
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):  # type: ignore[misc]
    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:
        folder = Path(self.data_folder_out)
        # Oldest first by name. One clock for all processes, which never goes back while the machine runs.
        path = folder / f"{time.monotonic_ns():020d}_{uuid.uuid4()}.{queue}.msg"
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(dumps(payload))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _get(self, queue: str) -> Any:
        for path in sorted(Path(self.data_folder_in).glob(f"*.{queue}.msg")):
            try:
                payload = path.read_bytes()
                path.unlink()
                return loads(payload)
            except (FileNotFoundError, ValueError):
                continue  # another worker was faster; or no message: removed, and no reason to end
        raise Empty

    def get_table(self, exchange: str) -> Any:
        with self._table():
            return super().get_table(exchange)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        with self._table():
            super()._queue_bind(exchange, routing_key, pattern, queue)

    @contextmanager
    def _table(self) -> Iterator[None]:
        with (self.control_folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Transport(filesystem.Transport):  # type: ignore[misc]
    Channel = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        # kombu's is the process's: a queue bound in one folder would count as bound in every other.
        self.state = virtual.BrokerState()

"""A process that runs families, one after the other; a crash or a wait without end costs one family."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

SECONDS = 120
"""That a family may take."""


class Child:
    """A process that runs families by name."""

    def __init__(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._connection = ours
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        ours.recv()  # imports are done

    def run(self, name: str, jobs: Sequence[str] | None = None) -> tuple[dict[str, Any], bool]:
        """(row, whether the process is lost). `jobs`: these alone; then the row is of them, each by itself."""
        row: dict[str, Any] = {"family": name, "jobs": {}}
        self._connection.send((name, jobs))
        deadline, job = time.monotonic() + SECONDS, "the checkpoint"
        try:
            while self._connection.poll(deadline - time.monotonic()):
                kind, said = self._connection.recv()
                if kind == "row":
                    return said, False
                job = said
            why = f"more than {SECONDS} s"
        except EOFError:
            self._process.join(10)
            why = f"the process ended with exit code {self._process.exitcode}"
        row["jobs"][job] = {"verdict": "crash", "detail": why}
        return row, True

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(connection: Connection) -> None:
    from tests.families.family import row_of

    connection.send("ready")
    while True:
        name, jobs = connection.recv()
        connection.send(("row", row_of(name, jobs, lambda job: connection.send(("job", job)))))

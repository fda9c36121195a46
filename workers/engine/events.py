"""Events: how the engine reports its progress. It has no other output but files.

The runner writes `JsonLines` and the supervisor reads them: one object a line. Each has `at`, in seconds on the host's
monotonic clock (left out here):
`{"event": "stage", "stage": "prune"}`, `{"event": "progress", "stage": …, "done": 3, "total": 8, "unit": "block"}`,
`{"event": "checkpoint", "block": 2}`, `{"event": "resume", "block": 3}`, `{"event": "log", "level": …, "message": …}`,
the same three with `"unit": "step"`, `"loss": 3.1` and `"step": 40` while a model is tuned,
and at the end one of `{"event": "result", "report": …}` or `{"event": "error", "code": …, "message": …, "hint": …}`.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Literal, Protocol, TextIO

Level = Literal["info", "warning", "error"]
Unit = Literal["block", "step"]


class Events(Protocol):
    def stage(self, name: str) -> None:
        """A stage begins; the one before it has ended."""

    def progress(self, done: int, total: int, unit: str, loss: float | None = None) -> None:
        """`done` of `total` units of the present stage are finished; the last one's training loss, in nats a token."""

    def checkpoint(self, index: int, unit: Unit = "block") -> None:
        """Block or step `index` (from 0) is durable: a retry will not do it again."""

    def resume(self, index: int, unit: Unit = "block") -> None:
        """This run starts at block or step `index`; the ones before it were found durable."""

    def log(self, message: str, level: Level = "info") -> None:
        """A line for the job's log."""


class Silent:
    """Events for tests and notebooks: drops everything."""

    def stage(self, name: str) -> None: ...
    def progress(self, done: int, total: int, unit: str, loss: float | None = None) -> None: ...
    def checkpoint(self, index: int, unit: Unit = "block") -> None: ...
    def resume(self, index: int, unit: Unit = "block") -> None: ...
    def log(self, message: str, level: Level = "info") -> None: ...


class JsonLines:
    """Events as JSON lines on a stream, each flushed at once so that a kill loses none."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = "load"
        self._lock = threading.Lock()  # blocks become durable on a thread of their own

    def emit(self, event: str, **fields: Any) -> None:
        line = {"event": event, "at": round(time.monotonic(), 3), "stage": self._stage, **fields}
        with self._lock:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Of a fork, whose events are nobody's."""
        self._stream.close()

    def stage(self, name: str) -> None:
        self._stage = name
        self.emit("stage")

    def progress(self, done: int, total: int, unit: str, loss: float | None = None) -> None:
        self.emit("progress", done=done, total=total, unit=unit, **({} if loss is None else {"loss": round(loss, 4)}))

    def checkpoint(self, index: int, unit: Unit = "block") -> None:
        self.emit("checkpoint", **{unit: index})

    def resume(self, index: int, unit: Unit = "block") -> None:
        self.emit("resume", **{unit: index})

    def log(self, message: str, level: Level = "info") -> None:
        self.emit("log", level=level, message=message)

"""A runner at work in a work directory, beside which models, data and checkpoint lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cluster import eventually
from workers.children import Spawned, runner_command
from workers.warm import Warm


def write_spec(workdir: Path, spec: Any) -> Path:
    workdir.mkdir()
    (workdir / "spec.json").write_text(json.dumps(spec))
    return workdir


def arguments(workdir: Path, *, checkpoint: str = "checkpoint", points_every: int = 0) -> list[str]:
    root = workdir.parent
    folders = ["--models", root / "models", "--data", root / "data", "--checkpoint", root / checkpoint]
    return [str(part) for part in (workdir, *folders, "--threads", "1", "--points-every", points_every)]


class Running:
    """A runner at work, forked by the warm parent or started plainly: its events, each line of standard output."""

    def __init__(self, workdir: Path, parent: Warm | None, **how: Any) -> None:
        """`how`: as of `arguments`."""
        self.log = workdir.with_suffix(".log")
        with self.log.open("wb") as log:
            given = arguments(workdir, **how)
            self.child = parent.start(given, log) if parent else Spawned(runner_command(given), log)
        self._events = os.fdopen(os.dup(self.child.events), encoding="utf-8")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._events:
            self.child.poll()  # closes our own end of the pipe: what the runner says ends with it
            yield json.loads(line)

    def until(self, event: str, **data: Any) -> list[dict[str, Any]]:
        """The events up to one that happens."""
        seen = []
        for found in self:
            seen.append(found)
            if found["event"] == event and data.items() <= found.items():
                return seen
        raise AssertionError(f"it ended without {event} {data}: {self.log.read_text()}")

    def finish(self) -> tuple[int, list[dict[str, Any]], str]:
        """Its exit code, the events from here on, and standard error."""
        with self._events:
            events = list(self)
        code = eventually(lambda: (self.child.poll(),) if self.child.poll() is not None else None)[0]
        self.child.end()
        return code, events, self.log.read_text()


def weights(workdir: Path) -> bytes:
    return (workdir / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def parent() -> Iterator[Warm]:
    """One for all: it takes seconds to import what its runners need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS")  # the suite's own: libraries start as many threads as they do elsewhere
        parent = Warm()
    yield parent
    parent.close()

"""A sweep: jobs that differ in a few fields of their spec."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from espalier.documents.sweeps import Pareto, SweepDocument
from espalier.errors import WaitTimeout
from espalier.queries import given, segment
from espalier.sync.reference import Reference
from espalier.sync.runtime import sleep

LOOK_EVERY_S = 2.0


class SweepRef(Reference):
    """A sweep by its id. Nothing is asked before a method is called."""

    def refresh(self) -> Sweep:
        """The sweep and its children as they are now."""
        return self._sweep(self._connection.get(self._path))

    def wait(self, timeout: float | None = None) -> Sweep:
        """The sweep once none of its jobs is queued or running. Raises WaitTimeout after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        sweep = self.refresh()
        while sweep.status != "completed":
            left_s = LOOK_EVERY_S if end is None else min(LOOK_EVERY_S, end - time.monotonic())
            if left_s <= 0:
                raise WaitTimeout(f"{self.id} is still {sweep.status} after {timeout:g} s; it goes on")
            sleep(left_s)
            sweep = sweep.refresh()
        return sweep

    def cancel(self) -> Sweep:
        """Stop its jobs that have not ended. Doing it twice is fine."""
        return self._sweep(self._connection.post(f"{self._path}/cancel", repeatable=True))

    def delete(self) -> None:
        """Delete it with its jobs and their files, once it is completed."""
        self._connection.request("DELETE", self._path)

    def pareto(self, *, quality: str | None = None, cost: str | None = None) -> Pareto:
        """Quality against cost: which jobs no other beats in both. Both are names of measurements, or `sparsity`."""
        params, headers = given(quality=quality, cost=cost), {"Accept": "application/json"}
        return Pareto.read(self._connection.get(f"{self._path}/pareto", params=params, headers=headers))

    def pareto_page(self, *, quality: str | None = None, cost: str | None = None) -> bytes:
        """The comparison as an HTML page with its figure."""
        params, headers = given(quality=quality, cost=cost), {"Accept": "text/html"}
        return (self._connection.request("GET", f"{self._path}/pareto", params=params, headers=headers)).content

    def csv(self) -> str:
        """A table of its children: values, status, verdict, measurements."""
        return (self._connection.request("GET", self._path, headers={"Accept": "text/csv"})).text

    @property
    def _path(self) -> str:
        return f"/v1/sweeps/{segment(self.id)}"

    def _sweep(self, raw: Mapping[str, Any]) -> Sweep:
        return Sweep.of(self._connection, raw)


class Sweep(SweepDocument, SweepRef):
    """A sweep. Its fields are as of the last answer; `refresh`, `wait` and `cancel` bring them up to date."""

    def _sweep(self, raw: Mapping[str, Any]) -> Sweep:
        return self.take(raw)

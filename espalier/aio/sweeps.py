"""A sweep: jobs that differ in a few fields of their spec."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from espalier.aio.reference import AsyncReference
from espalier.aio.runtime import sleep
from espalier.documents.sweeps import Pareto, SweepDocument
from espalier.errors import WaitTimeout
from espalier.queries import given, segment

LOOK_EVERY_S = 2.0


class AsyncSweepRef(AsyncReference):
    """A sweep by its id. Nothing is asked before a method is called."""

    async def refresh(self) -> AsyncSweep:
        """The sweep and its children as they are now."""
        return self._sweep(await self._connection.get(self._path))

    async def wait(self, timeout: float | None = None) -> AsyncSweep:
        """The sweep once none of its jobs is queued or running. Raises WaitTimeout after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        sweep = await self.refresh()
        while sweep.status != "completed":
            left_s = LOOK_EVERY_S if end is None else min(LOOK_EVERY_S, end - time.monotonic())
            if left_s <= 0:
                raise WaitTimeout(f"{self.id} is still {sweep.status} after {timeout:g} s; it goes on")
            await sleep(left_s)
            sweep = await sweep.refresh()
        return sweep

    async def cancel(self) -> AsyncSweep:
        """Stop its jobs that have not ended. Doing it twice is fine."""
        return self._sweep(await self._connection.post(f"{self._path}/cancel", repeatable=True))

    async def delete(self) -> None:
        """Delete it with its jobs and their files, once it is completed."""
        await self._connection.request("DELETE", self._path)

    async def pareto(self, *, quality: str | None = None, cost: str | None = None) -> Pareto:
        """Quality against cost: which jobs no other beats in both. Both are names of measurements, or `sparsity`."""
        params, headers = given(quality=quality, cost=cost), {"Accept": "application/json"}
        return Pareto.read(await self._connection.get(f"{self._path}/pareto", params=params, headers=headers))

    async def pareto_page(self, *, quality: str | None = None, cost: str | None = None) -> bytes:
        """The comparison as an HTML page with its figure."""
        params, headers = given(quality=quality, cost=cost), {"Accept": "text/html"}
        return (await self._connection.request("GET", f"{self._path}/pareto", params=params, headers=headers)).content

    async def csv(self) -> str:
        """A table of its children: values, status, verdict, measurements."""
        return (await self._connection.request("GET", self._path, headers={"Accept": "text/csv"})).text

    @property
    def _path(self) -> str:
        return f"/v1/sweeps/{segment(self.id)}"

    def _sweep(self, raw: Mapping[str, Any]) -> AsyncSweep:
        return AsyncSweep.of(self._connection, raw)


class AsyncSweep(SweepDocument, AsyncSweepRef):
    """A sweep. Its fields are as of the last answer; `refresh`, `wait` and `cancel` bring them up to date."""

    def _sweep(self, raw: Mapping[str, Any]) -> AsyncSweep:
        return self.take(raw)

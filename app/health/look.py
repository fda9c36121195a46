"""Run a slow check on a thread of its own, one at a time; all who ask meanwhile share its result.

Probes and metrics need no key and come from machines that do not give up: they must neither wait for a thread or a
connection that the API's own work has taken, nor take one from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from app.errors import NotReady

T = TypeVar("T")


class Look(Generic[T]):
    """Used on the event loop only."""

    def __init__(self, ask: Callable[[], T], *, name: str, wait_s: float, recent_s: float = 0) -> None:
        """`ask` must not raise. What it found is told for `recent_s` from its beginning on."""
        self._ask, self._wait_s, self._recent_s = ask, wait_s, recent_s
        self._thread = ThreadPoolExecutor(1, name)
        self._found: asyncio.Future[T] | None = None
        self._began = 0.0

    async def __call__(self) -> T:
        """Raises NotReady if there is no answer within `wait_s`."""
        loop = asyncio.get_running_loop()
        if self._found is None or (self._found.done() and loop.time() - self._began >= self._recent_s):
            self._began = loop.time()
            self._found = loop.run_in_executor(self._thread, self._ask)
        done, _ = await asyncio.wait([found := self._found], timeout=self._wait_s)
        if not done:
            raise NotReady(
                f"The database has not answered for {loop.time() - self._began:.0f} s.",
                code="database_unreachable",
                retryable=True,
                headers={"Retry-After": "5"},
            )
        return found.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False)

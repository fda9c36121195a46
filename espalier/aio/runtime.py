"""What differs between the two clients by more than `async` and `await`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from threading import Event
from typing import TypeVar

Result = TypeVar("Result")

sleep = asyncio.sleep
in_thread = asyncio.to_thread
"""Run what would hold up everything else, such as the digest of a large file."""


async def together(calls: Iterable[Callable[[], Awaitable[Result]]], *, at_once: int, stopped: Event) -> list[Result]:
    """The results of all calls, of which `at_once` run at a time. The first error ends the others and is raised once
    they have ended; `stopped` is set then."""
    gate = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Awaitable[Result]]) -> Result:
        async with gate:
            return await call()

    tasks = [asyncio.create_task(one(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        stopped.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

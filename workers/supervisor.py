"""Runs one attempt as a child process group: reads its events, asks for orders, stops it, reports how it ended.

It uses no database and no queue. The child is `workers.runner`, started plainly or forked (`workers.children`,
`workers.warm`); it dies with this process (PDEATHSIG), and whatever it started dies with its group.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from workers.children import Start


class Order(Enum):
    """The caller's decision about the child at a tick."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    TIMEOUT = "timeout"
    DRAIN = "drain"
    PAUSE = "pause"
    ABANDON = "abandon"
    """Another worker has the job: kill the child at once."""


@dataclass(frozen=True)
class Exit:
    """How the child ended."""

    order: Order
    """CONTINUE if it ended by itself."""
    returncode: int
    stage: str
    error: dict[str, Any] | None
    """Its last `error` event."""
    out_of_memory: bool
    """The kernel's OOM killer killed a process of our control group meanwhile."""

    @property
    def succeeded(self) -> bool:
        return self.order is Order.CONTINUE and self.returncode == 0


def supervise(
    start: Start,
    *,
    log: Path,
    on_tick: Callable[[list[dict[str, Any]]], Order],
    tick_s: float,
    grace_s: float,
) -> Exit:
    """Watch the child that `start` makes until it ends, calling `on_tick(new events)` every `tick_s` seconds.

    Any order but CONTINUE sends SIGTERM to the group, DRAIN and PAUSE SIGUSR1, by which the child keeps what it has
    finished, and SIGKILL follows after `grace_s` (ABANDON: at once). The group is dead when this returns or raises.
    """
    killed_before = _oom_kills()
    with log.open("ab") as log_file:
        child = start(log_file)
    order, kill_at, next_tick = Order.CONTINUE, float("inf"), time.monotonic()
    stage, error, pending = "load", None, list[dict[str, Any]]()
    try:
        reader = _Lines(child.events)
        while True:
            # The last lines are read after the child is seen dead, so none is missed.
            dead = child.poll() is not None
            for event in reader.read(timeout=0 if dead else min(0.2, tick_s)):
                stage = event.get("stage", stage)
                error = event if event["event"] == "error" else error
                pending.append(event)
            if dead:
                break
            now = time.monotonic()
            if order is Order.CONTINUE and now >= next_tick:
                order = on_tick(pending)
                pending, next_tick = [], now + tick_s
                if order is not Order.CONTINUE:
                    kill_at = now + (0 if order is Order.ABANDON else grace_s)
                    child.signal(signal.SIGUSR1 if order in (Order.DRAIN, Order.PAUSE) else signal.SIGTERM)
            if now >= kill_at:
                child.signal(signal.SIGKILL)
    finally:
        returncode = child.end()
    if order is Order.CONTINUE:
        order = on_tick(pending)
    return Exit(order, returncode, stage, error, _oom_kills() > killed_before)


class _Lines:
    """Complete JSON lines from a pipe, without blocking past a timeout."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(fd, selectors.EVENT_READ)
        self._open = True

    def read(self, timeout: float) -> list[dict[str, Any]]:
        if not self._open:
            time.sleep(timeout)
            return []
        if not self._selector.select(timeout):
            return []
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._fd, 65536):
                self._rest += chunk
            self._open = False
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]


def _oom_kills() -> int:
    """Number of OOM kills in our control group (cgroup v2); 0 where it is not known."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        events = (Path("/sys/fs/cgroup") / group / "memory.events").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))

"""Child processes that are restarted when they crash, stopped together, and end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from app.cli.exits import CliError

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class GaveUp(CliError):
    """A child crashed too often."""


@dataclass
class Child:
    name: str
    command: Sequence[str]
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0
    restart_at: float = 0
    crashes: int = field(default=0)
    """Crashes in a row; the count restarts once a child has run for STEADY_S."""


class Family:
    """`run` until SIGINT or SIGTERM; a second one kills."""

    STEADY_S = 60.0
    MOST_CRASHES = 5
    TICK_S = 0.1

    def __init__(self, children: Sequence[Child], environment: Mapping[str, str], *, grace_s: float) -> None:
        self._children = children
        self._environment = environment
        self._grace_s = grace_s
        self._signals = 0

    def start(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        for child in self._children:
            self._spawn(child)

    @property
    def stopping(self) -> bool:
        return self._signals > 0

    def tick(self) -> None:
        """Restart ended children, each time later. Raises GaveUp after MOST_CRASHES in a row."""
        time.sleep(self.TICK_S)
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.restart_at:
                    self._spawn(child)
            elif (code := child.process.poll()) is not None and not self.stopping:
                _kill_group(child.process.pid)
                child.crashes = 1 if now - child.started_at > self.STEADY_S else child.crashes + 1
                if child.crashes == self.MOST_CRASHES:
                    raise GaveUp(f"the {child.name} ended {child.crashes} times in a row, last with code {code}")
                delay_s = 0.5 * 2 ** (child.crashes - 1)
                sys.stderr.write(f"espalier: the {child.name} ended with code {code}; restarting in {delay_s:g} s\n")
                child.process, child.restart_at = None, now + delay_s

    def stop(self) -> None:
        """SIGTERM to each, SIGKILL to every group once the grace is over or at the second signal."""
        asked_once = self._signals
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + self._grace_s
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or self._signals > max(asked_once, 1):
                break
            time.sleep(self.TICK_S)
        for process in running:
            _kill_group(process.pid)
            process.wait()

    def _spawn(self, child: Child) -> None:
        child.started_at = time.monotonic()
        child.process = subprocess.Popen(
            child.command,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,  # ours says where the service is, and nothing else
            pass_fds=child.pass_fds,
            start_new_session=True,  # its own group: Ctrl-C reaches it through us, once
            preexec_fn=partial(_end_with_parent, os.getpid()),
        )

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1


def _end_with_parent(parent: int) -> None:
    """In the child: have the kernel send SIGTERM when the parent ends, also by SIGKILL (Linux)."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the kernel knew
            os.kill(os.getpid(), signal.SIGTERM)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)

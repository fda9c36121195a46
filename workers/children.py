"""Runners as child processes, as the supervisor uses them, however they are started.

A child leads a session of its own, so that its group can be signalled; it is not reaped before `end`, so that
its group's number is not reused meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NoReturn, Protocol

RUNNER_DIED = "runner_died"
"""Code of the failure of a process of a job that ended without saying why."""
RUNNER_DIED_HINT = "Tried again while attempts are left, from its last resume point. The job's log has its last words."
_PR_SET_PDEATHSIG = 1


class Child(Protocol):
    """A process that supervision can watch and stop."""

    events: int
    """File descriptor of its standard output, to be read."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def signal(self, number: signal.Signals) -> None:
        """Signal its whole group. Harmless if that is gone."""

    def end(self) -> int:
        """Kill what is left of the group, release everything, and return the exit code."""


Start = Callable[[IO[bytes]], Child]
"""Starts a child whose standard error is the given file."""


class Spawned:
    """A child of our own, from a command line."""

    def __init__(self, command: Sequence[str], log: IO[bytes] | int) -> None:
        self.events, writable = os.pipe()
        try:
            self._process = start(command, writable, log)
        finally:
            os.close(writable)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return exit_code(self._process)

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> int:
        self.signal(signal.SIGKILL)
        code = self._process.wait()
        os.close(self.events)
        return code


def exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """As Popen.poll, but an ended process is not reaped, so that its number is not reused."""
    if process.returncode is not None or not hasattr(os, "waitid"):  # macOS has none before Python 3.13
        return process.poll()
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if ended is None else code_of(ended)


def code_of(ended: os.waitid_result) -> int:
    """Exit code of a process that has ended, negative for a signal."""
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def ending(code: int) -> str:
    """An exit code in words: `exit code 3`, `signal SIGKILL`."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def leave(code: int) -> NoReturn:
    """End this process at once, without what libraries do at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(command: Sequence[str], events: int, log: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """A process that leads a session of its own, with these as its standard output and error."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=events, stderr=log, start_new_session=True)


def runner_command(arguments: Sequence[str]) -> list[str]:
    """The command line of a runner that does its own imports, and dies with this process."""
    return [sys.executable, "-m", "workers.runner", *arguments, "--parent", str(os.getpid())]


def has_threads() -> bool:
    """Whether this process has threads beside the present one, which a fork would not have and wait for (Linux)."""
    tasks = Path("/proc/self/task")
    return tasks.exists() and len(list(tasks.iterdir())) > 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)

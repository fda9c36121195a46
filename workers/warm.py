"""Starts runners by forking a process that has done the imports already (`workers.warm_parent`): seconds saved a job.

Where that process cannot be had, runners are started plainly. One runner at a time.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import structlog

from workers.children import Child, Spawned, exit_code, runner_command, start
from workers.warm_parent import MESSAGE_BYTES

log = structlog.get_logger(__name__)

COMMAND = [sys.executable, "-m", "workers.warm_parent"]
"""Followed by the process to die with."""
MOST_JOBS = 200
"""A parent is replaced after so many jobs, in case forking leaks."""
REPORT_S = 10.0
"""A parent that does not report a child's end within so many seconds is stuck, and is killed."""
FORK_S = 300.0
"""The same of one that has not forked: imports from a slow disk take a minute."""


class Warm:
    """The parent of this worker's runners; started at once, so that it is ready when the first job comes."""

    def __init__(self) -> None:
        self._jobs, self._usable = 0, True
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, arguments: Sequence[str], log_file: IO[bytes]) -> Child:
        """A runner with these arguments: a fork, which waits for the imports if need be, or a plain start."""
        if self._usable and (self._process.poll() is not None or self._jobs >= MOST_JOBS):
            self.close()
            self._start()
        if not self._usable:
            return Spawned(runner_command(arguments), log_file)
        self._jobs += 1
        return Forked(self, arguments, log_file)

    def close(self) -> None:
        """End the parent and its child, if there is one."""
        self.channel.close()
        self._process.kill()
        self._process.wait()

    def give_up(self) -> None:
        """The parent ended before it forked: start plainly from now on."""
        log.warning("warm_parent_failed", returncode=self._process.poll())
        self._usable = False
        self.close()

    def _start(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*COMMAND, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._jobs = 0


class Forked:
    """A runner forked by the warm parent."""

    def __init__(self, warm: Warm, arguments: Sequence[str], log_file: IO[bytes]) -> None:
        self._warm, self._arguments = warm, arguments
        self._pid: int | None = None
        self._handle: int | None = None
        """pidfd of the child, readable once it has ended; None where the system has none."""
        self._code: int | None = None
        self._silent_since = time.monotonic()
        """Since when an answer of the parent is due; none is due while the child runs."""
        self._plain: subprocess.Popen[bytes] | None = None
        self.events, writable = os.pipe()
        self._ours = [writable]
        try:
            self._ours.append(os.dup(log_file.fileno()))
            request = json.dumps({"argv": list(arguments)}).encode()
            with suppress(BrokenPipeError, ConnectionResetError):  # `poll` finds out
                warm.channel.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self._ours))])
        except OSError:  # no descriptors are left, or no memory for the message
            self._close_ours()
            os.close(self.events)
            raise

    def poll(self) -> int | None:
        if self._plain is not None:
            return exit_code(self._plain)
        while self._code is None:
            try:
                data = self._warm.channel.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._end_stuck_parent()
                break
            except ConnectionResetError:
                data = b""
            if not data:
                self._parent_is_gone()
                break
            message = json.loads(data)
            if "pid" in message:
                self._pid = message["pid"]
                with suppress(OSError):
                    self._handle = os.pidfd_open(self._pid)
            self._code = message.get("returncode")
            self._close_ours()
        return self._code

    def signal(self, number: signal.Signals) -> None:
        if self._plain is not None or self._pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._plain.pid if self._plain is not None else self._pid or 0, number)
        elif self._code is None:  # still importing: without a parent there will be no child
            self._warm.close()
            self._code = -signal.SIGKILL

    def end(self) -> int:
        self.signal(signal.SIGKILL)
        if self._plain is not None:
            self._code = self._plain.wait()
        elif self._pid is not None:
            while self.poll() is None:
                if not select.select([self._warm.channel], [], [], REPORT_S)[0]:
                    self._warm.close()
                    self._code = -signal.SIGKILL
            with suppress(OSError):  # the parent is gone, and its child with it
                self._warm.channel.send(b'{"reap": true}')
        self._close_ours()
        if self._handle is not None:
            os.close(self._handle)
        os.close(self.events)
        assert self._code is not None  # `signal` or `poll` set it
        return self._code

    def _end_stuck_parent(self) -> None:
        """Kill a parent whose answer is overdue. Its child's exit code is lost with it."""
        now = time.monotonic()
        if self._pid is None:
            if now - self._silent_since > FORK_S:
                self._parent_is_gone()
        elif self._handle is None or not select.select([self._handle], [], [], 0)[0]:
            self._silent_since = now
        elif now - self._silent_since > REPORT_S:
            self._warm.close()
            self._code = -signal.SIGKILL

    def _parent_is_gone(self) -> None:
        if self._pid is not None:
            self._code = -signal.SIGKILL  # the kernel kills the child with its parent
            return
        self._warm.give_up()
        self._plain = start(runner_command(self._arguments), *self._ours)
        self._close_ours()

    def _close_ours(self) -> None:
        """Close our copies of the child's descriptors, so that its end closes the events."""
        while self._ours:
            os.close(self._ours.pop())

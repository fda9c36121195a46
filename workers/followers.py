"""The ranks of a job beside the first: forks of its runner that die with it and report to it why they ended.

They stay in the runner's session and process group, so that a signal to its group reaches all of them, and end with
the thread that forked them, which must be the main one (PDEATHSIG). They ignore SIGTERM, SIGUSR1 and SIGINT, which the
runner obeys for all. Forking is safe while the process has done nothing but imports (`workers.warm_parent`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from workers.children import RUNNER_DIED, RUNNER_DIED_HINT, die_with_parent, ending, has_threads, leave
from workers.engine.errors import EngineError

GRACE_S = 2.0
"""After a rank's end: how long others may take to end of the same cause, or of its loss."""
Error = dict[str, Any]
"""Fields of an `error` event."""


@dataclass(frozen=True)
class Fall:
    """An early end of a rank."""

    rank: int
    error: Error
    exit_code: int
    certain: bool
    """Whether it is its own: any other exception may follow from the loss of another rank."""


class Followers:
    """The further ranks, as the first handles them."""

    def __init__(self, count: int, folder: Path) -> None:
        """None are there before `fork`. `folder` is where they meet."""
        self.count, self.rank = count, 0
        self.meeting = Path(tempfile.mkdtemp(prefix="ranks-", dir=folder)) / "store" if count > 1 else folder
        self._pids: list[int] = []
        self._watchers: list[threading.Thread] = []
        """A thread for each, which reaps it."""
        self._falls: list[Fall] = []
        self._fallen, self._over = threading.Event(), threading.Event()
        self._last_word = threading.Lock()

    def fork(self) -> bool:
        """Make them; True in each of them, False in the first."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.count > 1 and has_threads():
            raise RuntimeError(
                "the runner has more than one thread and cannot fork its ranks: unset OPENBLAS_NUM_THREADS"
            )
        words = list[int]()
        for rank in range(1, self.count):
            read, write = os.pipe()
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                die_with_parent(parent)
                for other in (*words, read):
                    os.close(other)
                os.dup2(2, 1)
                self.rank, self._words = rank, write
                return True
            os.close(write)
            words.append(read)
            self._pids.append(pid)
        for rank, (pid, read) in enumerate(zip(self._pids, words, strict=True), 1):
            self._watchers.append(threading.Thread(target=self._watch, args=[rank, pid, read], daemon=True))
            self._watchers[-1].start()
        return False

    def follow(self, work: Callable[[], object]) -> NoReturn:
        """Do a further rank's part, and end the process."""
        code = 0
        try:
            work()
        except BaseException as error:
            said, code = described(error)
            os.write(self._words, json.dumps(said | {"certain": isinstance(error, EngineError)}).encode())
        leave(code)

    def on_fall(self, tell: Callable[[Error], None]) -> None:
        """After the early end of a rank, call `tell` with its error and end this process with its exit code,
        unless `end` is called within GRACE_S.
        """

        def wait() -> None:
            self._fallen.wait()
            if not self._over.wait(GRACE_S) and self._last_word.acquire(blocking=False):
                fall = self._first()
                tell(fall.error)
                os._exit(fall.exit_code)

        if self._pids:
            threading.Thread(target=wait, name="ranks", daemon=True).start()

    def cause(self) -> Fall | None:
        """The early end of a rank from which an exception in this process may follow, if there is one."""
        give_up_s = time.monotonic() + GRACE_S
        while self._pids and time.monotonic() < give_up_s and not any(fall.certain for fall in self._falls):
            time.sleep(0.02)
        return self._first() if self._falls else None

    def end(self) -> None:
        """Kill and reap them. Does not return where `on_fall` has reported an error, as it ends this process."""
        self._over.set()
        if not self._last_word.acquire(blocking=False):
            threading.Event().wait()
        for pid in self._pids:
            with suppress(ProcessLookupError):  # reaped
                os.kill(pid, signal.SIGKILL)
        for watcher in self._watchers:
            watcher.join()
        if self._pids:
            shutil.rmtree(self.meeting.parent, ignore_errors=True)

    def _first(self) -> Fall:
        """The fall that may be the cause of the others."""
        return min(self._falls, key=lambda fall: not fall.certain)

    def _watch(self, rank: int, pid: int, read: int) -> None:
        with os.fdopen(read, "rb") as words:
            said = words.read()
        _, status = os.waitpid(pid, 0)
        if self._over.is_set():
            return
        code = os.waitstatus_to_exitcode(status)
        place = f"on rank {rank} of {self.count}"
        if said:
            error = json.loads(said)
            certain = error.pop("certain")
            self._falls.append(
                Fall(rank, error | {"message": f"{error['message']} ({place})", "rank": rank}, code, certain)
            )
        elif code:
            error = {
                "code": RUNNER_DIED,
                "message": f"the process {place} ended with {ending(code)}",
                "hint": RUNNER_DIED_HINT,
                "retryable": True,
                "field": None,
                "rank": rank,
            }
            self._falls.append(Fall(rank, error, 128 - code if code < 0 else code, True))
        else:
            return
        self._fallen.set()


def described(error: BaseException) -> tuple[Error, int]:
    """Fields of the `error` event of an exception, and the exit code. The traceback of a bug, or of another library's
    error, is written to standard error."""
    if isinstance(error, EngineError):
        if error.__cause__ is not None:  # another library's words are for the log
            traceback.print_exception(error)
        return {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "retryable": error.retryable,
            "field": error.field,
        }, error.exit_code
    traceback.print_exception(error)
    return {
        "code": EngineError.code,
        "message": f"{type(error).__name__}: {error}",
        "hint": "this is a bug in the engine; the job's log has the traceback",
        "retryable": False,
        "field": None,
    }, EngineError.exit_code

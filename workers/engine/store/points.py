"""Write resume points in the background, as rarely as the bound on lost work allows. Import-light.

A kill loses the work since the last point. So a point is written as soon as the next unit of work (a block) would make
that more than `every_s`: a kill loses `every_s` or one unit, whichever is more, and the time of the write.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

EVERY_S = 60.0


@dataclass(frozen=True)
class _Offer:
    write: Callable[[], None]
    drop: Callable[[], None]
    at_s: float


class Points:
    """Writes the latest resume point that was offered when it is due, on one thread at a time."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        """0 writes every point that is offered, before `offer` returns."""
        self.every_s = every_s
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        """Held while a point is written."""
        self._thread: threading.Thread | None = None
        self._waiting: _Offer | None = None
        self._error: BaseException | None = None
        self._draining = False
        self._kept_s = self._offered_s = time.monotonic()
        """Times at which the work of the last point, and of the last offer, was done."""

    def offer(self, write: Callable[[], None], drop: Callable[[], None] = lambda: None) -> None:
        """`write` makes a further point, now or later; where a further one replaces it first, `drop` is called instead.

        Raises an error of writing an earlier point.
        """
        now_s = time.monotonic()
        with self._lock:
            refused = self._draining  # the drain writes the point that waits
            if not refused:
                before, self._waiting = self._waiting, _Offer(write, drop, now_s)
            due = now_s + (now_s - self._offered_s) - self._kept_s > self.every_s
            self._offered_s = now_s
        if refused:
            drop()
            return
        if before is not None:
            before.drop()
        if not self.every_s:
            self._write()
        elif due and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._write, name="resume-points", daemon=True)
            self._thread.start()
        self._raise()

    def settle(self) -> None:
        """Write the waiting point, and return when it is durable. Raises errors of writing."""
        self._write()
        self._raise()

    def give_up(self) -> None:
        """Drop the waiting point and errors, once no write is in progress."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.drop()
        with self._writing:
            self._error = None

    def drain(self) -> None:
        """Write the waiting point and accept no more, as the process is about to end. Never raises."""
        with self._lock:
            self._draining = True
        self._write()

    def _write(self) -> None:
        """Write the waiting point, after a write in progress."""
        with self._writing:
            with self._lock:
                offer, self._waiting = self._waiting, None
            if offer is None:
                return
            try:
                offer.write()
                self._kept_s = offer.at_s
            except BaseException as error:  # of a thread: the next offer or settle raises it
                self._error = error
            finally:
                offer.drop()

    def _raise(self) -> None:
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

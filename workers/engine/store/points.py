"""When resume points are written: in the background, as seldom as the work at risk allows. Import-light.

A kill costs what was done since the last point. So one is written as soon as the next unit of work (a block) would
bring that beyond `every_s`: a kill costs `every_s` or one unit, whichever is more, and what the disk takes.
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
        """When the work that the last point holds was done, and that of the last offer."""

    def offer(self, write: Callable[[], None], drop: Callable[[], None] = lambda: None) -> None:
        """`write` makes a further point, now, later or not at all, as further ones supersede it; `drop` is called then.

        Raises what writing an earlier point raised.
        """
        now_s = time.monotonic()
        with self._lock:
            refused = self._draining  # what waits is what the drain writes
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
        """Write what is waiting, and return when it is durable. Raises what writing raised."""
        self._write()
        self._raise()

    def give_up(self) -> None:
        """Forget what is waiting and what failed, once nothing is being written any more."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.drop()
        with self._writing:
            self._error = None

    def drain(self) -> None:
        """The process is about to end: write what is waiting, and take nothing more. Never raises."""
        with self._lock:
            self._draining = True
        self._write()

    def _write(self) -> None:
        """Write what is waiting, after what is being written."""
        with self._writing:
            with self._lock:
                offer, self._waiting = self._waiting, None
            if offer is None:
                return
            try:
                offer.write()
                self._kept_s = offer.at_s
            except BaseException as error:  # of a thread: whoever offers or settles next raises it
                self._error = error
            finally:
                offer.drop()

    def _raise(self) -> None:
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

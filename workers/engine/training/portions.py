"""Texts that are read on while they are trained on: their windows come in portions.

An epoch of a text goes through its portions in their order, and through the windows of each in an order that a seed of
its own makes. So a training needs no more than the portion it is in; the next ones are read meanwhile, on a thread of
the first rank, which tells the other ranks of each when the first step needs it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xxhash import xxh3_128

if TYPE_CHECKING:
    from workers.engine.contracts.texts import Tokens
    from workers.engine.model.cut import Cut
    from workers.engine.model.reading import Reading
    from workers.engine.model.windows import HeldOut
    from workers.engine.report import TextReport
    from workers.engine.store.token_file import TokenFile

PORTION = 2**16
"""Windows. Of texts of no more than that, an epoch is one permutation."""
AHEAD = 2
"""Portions of a text that are read and not yet asked for, at most."""


@dataclass(frozen=True)
class Told:
    """A text up to the end of a portion."""

    train_NT: Cut
    """All windows to train on up to there."""
    read: TextReport | None
    digest: str
    """Of all tokens read up to there, and of where documents begin in them. It finds another text, not a forged one."""
    ended: bool
    """Whether there are no more."""


class Arrival:
    """One text that is being read."""

    def __init__(
        self, reading: Reading, file: TokenFile, cut: Callable[[Tokens, int | None], HeldOut], least: int, portion: int
    ) -> None:
        """Read whole portions of so many windows, of `least` windows together, or all there is. `file`: where their
        tokens go. `cut`: the windows in some tokens, so many to train on or, with None, all that are wanted."""
        self._reading, self._file, self._cut, self.portion = reading, file, cut, portion
        self._whole = -(-least // portion)
        """Portions of what is told next."""
        self.told: deque[Told] = deque()
        """Portions that nobody has asked for yet, the oldest first."""
        self.over = False
        """Whether there is nothing more to read, or reading has failed."""
        self.error: BaseException | None = None
        while not self.told:
            self.told += self.read_on()

    def read_on(self) -> list[Told]:
        """Read a piece more; what is to be told of it. Raises what a `Reading` does, and DatasetTooShort."""
        self.over = not self._reading.on()
        whole = self._reading.windows // self.portion
        if not self.over and whole < self._whole:
            return []
        tokens = self._reading.tokens()
        if self.over:
            return [self._up_to(tokens, None)]
        complete = range(self._whole, whole + 1)
        self._whole = whole + 1
        return [self._up_to(tokens, count * self.portion) for count in complete]

    def _up_to(self, tokens: Tokens, windows: int | None) -> Told:
        self.found = self._cut(tokens, windows)
        known = repr((self._file.digest, tokens.starts, tokens.documents))
        read = tokens.report and tokens.report.model_copy(update={"documents_held_out": self.found.documents})
        return Told(self.found.train_NL, read, xxh3_128(known.encode()).hexdigest(), windows is None)


class Background:
    """Reads some texts on, one piece of one of them at a time, so far that portions of each are there ahead."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals = arrivals
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._paused = False
        self._asked: Arrival | None = None
        """Which one a step waits for, or has waited for last."""
        self.waited_s = 0.0
        """How long was waited for portions that were not there."""

    def next(self, number: int) -> Told:
        """The next portion of a text, by the text's number; it is read meanwhile, if need be. Raises what `read_on`
        does."""
        arrival = self._arrivals[number]
        began = time.perf_counter()
        with self._changed:
            self._asked = arrival
            self._begin()
            self._changed.wait_for(lambda: arrival.told or arrival.error)
            if arrival.error is not None and not arrival.told:
                raise arrival.error
            told = arrival.told.popleft()
            self._begin()
        self.waited_s += time.perf_counter() - began
        return told

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read meanwhile. After it nothing is read: others use the tokenizer."""
        with self._changed:
            self._begin()
        try:
            yield
        finally:
            with self._changed:
                self._paused, thread = True, self._thread
            if thread is not None:
                thread.join()
            self._paused = False

    def _begin(self) -> None:
        if self._thread is None and self._due():
            self._thread = threading.Thread(target=self._read, name="text", daemon=True)
            self._thread.start()

    def _due(self) -> list[Arrival]:
        """Texts of which too little is there, that of which least is first; of two the one that was asked for."""
        found = [arrival for arrival in self._arrivals if not arrival.over and len(arrival.told) < AHEAD]
        return sorted(found, key=lambda arrival: (len(arrival.told), arrival is not self._asked))

    def _read(self) -> None:
        while True:
            with self._changed:
                if self._paused or not (due := self._due()):
                    self._thread = None
                    return
            told: list[Told] = []
            error: BaseException | None = None
            try:
                told = due[0].read_on()
            except BaseException as raised:  # of a thread: the step that needs the text raises it
                error = raised
            with self._changed:
                due[0].told += told
                if error is not None:
                    due[0].over, due[0].error = True, error
                self._changed.notify_all()

"""Parts: the hidden states of several ranks as one resume point, each rank's windows in a file of its own.

The first rank decides which point is written, and when (`points.py`). The others keep their part of every point that
the first keeps, and write or drop it on its errand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from workers.engine.ranks import Errands

if TYPE_CHECKING:
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from typing import Any, BinaryIO

    from workers.engine.ranks import Ranks


class Held(Protocol):
    """Hidden states that are kept until they are closed."""

    def as_file(self, new_file: Callable[[], BinaryIO]) -> AbstractContextManager[BinaryIO]:
        """A file that holds them; made by `new_file`, if they are in none."""

    def close(self) -> None: ...


class Parts:
    """The other ranks' hidden states of the points of one walk, by the block that they enter."""

    def __init__(self, ranks: Ranks, write: Callable[[int, Held], None]) -> None:
        """`write` makes a rank's own part durable."""
        self._write, self._held, self._changed = write, dict[int, Held](), threading.Condition()
        self._errands = Errands(ranks, self._run)

    def hold(self, block: int, states: Held) -> None:
        """Keep this rank's part until the first rank has it dropped. On the other ranks."""
        with self._changed:
            self._held[block] = states
            self._changed.notify_all()

    def write(self, block: int) -> Future[list[Any]]:
        """Have the others make their parts durable. On the first rank."""
        return self._errands.send((block, True))

    def drop(self, block: int) -> None:
        """Have the others drop their parts, and do not wait for it. On the first rank."""
        self._errands.send((block, False))

    def _run(self, errand: tuple[int, bool]) -> None:
        block, wanted = errand
        with self._changed:
            # This rank may lag by a block: it gets there without the first one.
            self._changed.wait_for(lambda: block in self._held)
            states = self._held[block] if wanted else self._held.pop(block)
        if wanted:
            self._write(block, states)
        else:
            states.close()

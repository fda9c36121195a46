"""Windows of a text that are cut when they are asked for. N = windows, L = tokens of a window."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.texts import Ids


class Cut:
    """Windows of tokens cut one after another from stretches of a text, as if these were one."""

    def __init__(
        self, ids: Ids, opening: Sequence[int], stretches: Sequence[tuple[int, int]], length: int, count: int
    ) -> None:
        """`opening`: first tokens of every window. `stretches`: (begin, end) in the text. `count`: windows, at most as
        many as the stretches have."""
        self._ids, self._count = ids, count
        self._opening = torch.tensor(opening, dtype=torch.int64)
        self._stretches = [*stretches]
        self._ends = [*accumulate(end - begin for begin, end in stretches)]
        self._own = length - len(opening)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Windows by their numbers, int64 [N, L]."""
        numbers = range(self._count)[which] if isinstance(which, slice) else which.tolist()
        if not len(numbers):
            return torch.empty(0, len(self._opening) + self._own, dtype=torch.int64)
        return torch.stack([torch.cat([self._opening, *self._window(number)]) for number in numbers])

    def _window(self, number: int) -> list[Tensor]:
        """Its tokens after the opening ones, of one stretch or of several."""
        at, left, found = number * self._own, self._own, []
        stretch = bisect_right(self._ends, at)
        while left:
            begin, end = self._stretches[stretch]
            begin = end - (self._ends[stretch] - at)
            end = min(end, begin + left)
            found.append(self._ids[begin:end])
            at, left, stretch = at + end - begin, left - (end - begin), stretch + 1
        return found

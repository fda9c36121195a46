"""Where a matrix lies in a stored tensor that holds several, or its transpose. Import-light.

As a view of the tensor it is read and written where it lies. O = outputs, I = inputs, E = experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The part of a tensor that a canonical tensor is."""

    expert: int | None
    """Index along the first axis; None where the tensor has no experts."""
    transposed: bool
    start: int
    run: int
    period: int
    """Its outputs are `run` outputs from `start` on of every `period`."""

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The canonical shape, in a tensor of this shape."""
        inner = tuple(whole if self.expert is None else whole[1:])
        if self.transposed:
            inner = inner[::-1]
        return (inner[0] // self.period * self.run, *inner[1:])

    def view(self, whole: Tensor) -> Tensor:
        """The part as a view of the tensor, [periods, run, ...]."""
        inner = whole if self.expert is None else whole[self.expert]
        if self.transposed:
            inner = inner.transpose(0, 1)
        return inner.view(-1, self.period, *inner.shape[1:]).narrow(1, self.start, self.run)

    def read(self, whole: Tensor) -> Tensor:
        """The canonical tensor, contiguous; a copy unless it lies so."""
        return self.view(whole).flatten(0, 1).contiguous()

    def write(self, whole: Tensor, part: Tensor) -> None:
        """Write the canonical tensor where it lies."""
        view = self.view(whole)
        view.copy_(part.reshape(view.shape))

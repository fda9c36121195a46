"""Texts as methods ask for them and see them. Import-light. T = tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from workers.engine.report import TextReport


@dataclass(frozen=True)
class Wanted:
    """How much of a text to read, in windows; the rest is not looked at."""

    count: int | None
    """None: all of the text."""
    length: int
    """Tokens of a window, the opening ones included."""
    per_document: int | None = None
    """Most windows of each document. If given, no window spans two documents."""
    held_out: int = 0
    """Windows before these, of documents that are to have none of the `count`. Of a text that is one document as many
    are read as without this."""
    characters: int = 0
    """Least number of characters to read, as far as the text has them."""


@dataclass(frozen=True)
class OneDomain:
    """The rows of a text that are of one domain."""

    column: str
    name: str


class Ids(Protocol):
    """Token ids one after another, in memory or in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Encoded:
    """Tokens of a piece of a text."""

    ids_T: NDArray[np.int64]
    """Without special tokens, except those written in the text."""
    characters: int
    starts: list[int]
    """Index in `ids_T` of the first token of each document that begins in the piece."""


class KeepsPieces(Protocol):
    """Pieces that one attempt at a job has tokenised, for the next."""

    def piece(self, text: str, make: Callable[[], Encoded], /) -> Encoded:
        """The next piece, as it was kept or, where none is that was made of this text, as `make` gives it; then it is
        kept."""
        ...


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it."""

    ids_T: Ids
    """int64, without special tokens."""
    opening: tuple[int, ...] = ()
    """First tokens of every window: the model's beginning-of-sequence token, or none."""
    starts: tuple[int, ...] = (0,)
    """Where each stretch of a document begins, ascending."""
    documents: tuple[int, ...] = (0,)
    """The number of each stretch's document."""
    report: TextReport | None = None

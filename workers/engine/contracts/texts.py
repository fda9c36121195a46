"""Texts as methods ask for them and see them. Import-light. T = tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    """Most windows of each document. With it windows do not reach over documents' ends."""
    characters: int = 0
    """Read at least so many, if they are there."""


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it."""

    ids_T: Tensor
    """int64, without special tokens."""
    opening: tuple[int, ...] = ()
    """What every window begins with: the model's beginning-of-sequence token, or nothing."""
    starts: tuple[int, ...] = (0,)
    """Where each stretch of a document begins, ascending."""
    documents: tuple[int, ...] = (0,)
    """The number of each stretch's document."""
    report: TextReport | None = None

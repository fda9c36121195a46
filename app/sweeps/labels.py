"""Labels beside points, none over another, over a point or beyond the plot. Units of the view box, y downwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CHARACTER = 7.6
"""Width of a character of 13 px, on the safe side."""
LINE = 15.0
"""Height of a label."""
RADIUS = 8.0
"""Size of a point with its margin."""


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, other: Box) -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class Label:
    text: str
    box: Box


def place(
    texts: Sequence[Sequence[str]], points: Sequence[tuple[float, float]], taken: Sequence[Box], plot: Box
) -> list[Label | None]:
    """A label for each point: the first of its texts that fits somewhere beside it, or None where none does.

    Numbers are placed for all points before a longer text takes the room of another.
    """
    dots = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    placed: list[Label | None] = [None] * len(points)
    for rank in (-1, 0):
        for index, (candidates, point) in enumerate(zip(texts, points, strict=True)):
            if not candidates:
                continue
            others = [label.box for other, label in enumerate(placed) if label is not None and other != index]
            obstacles = [*taken, *dots, *others]
            for box in _around(point, CHARACTER * len(candidates[rank])):
                if box.within(plot) and not any(box.overlaps(obstacle) for obstacle in obstacles):
                    placed[index] = Label(candidates[rank], box)
                    break
    return placed


def _around(point: tuple[float, float], width: float) -> Iterator[Box]:
    """Places of a label, the nearest first."""
    x, y = point
    for distance in (RADIUS + 1, 20.0, 34.0):
        for left in (x + distance, x - distance - width, x - width / 2):
            for top in (y - distance - LINE, y + distance, y - LINE / 2):
                yield Box(left, top, left + width, top + LINE)

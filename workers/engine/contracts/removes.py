"""A kind of unit that pruners remove, as far as the rules of a spec ask. Import-light."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Removes:
    """What a kind of unit is. What its removal does to a model is said in its file, `removals/<name>.py`."""

    name: str
    units: tuple[str, ...]
    """What its pruners remove; a score that fits is about at least one of them."""
    plurals: tuple[str, ...]
    """The same as messages name several of them."""
    scored_first: bool = True
    """Whether its units are scored on the dense model before anything goes, not when it is a layer's turn."""
    sums_weights: bool = False
    """Whether the scores of a unit's weights, added up, are a score of the unit."""
    spread: bool = False
    """Whether an allocator says how much of each layer goes."""
    tried: bool = False
    """Whether trial prunings of single weights show what it costs."""
    leaves_zeros: bool = False
    """Whether zeros stay in the place of what goes, which a refiner can move."""

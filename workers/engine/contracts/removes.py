"""A kind of unit that pruners remove: the facts that the rules of a spec depend on. Import-light."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Removes:
    """Facts about a kind of unit. Its `Removal`, in `removals/<name>.py`, changes the model."""

    name: str
    units: tuple[str, ...]
    """Units that its pruners remove; a score fits if it scores all of them that a spec asks for."""
    plurals: tuple[str, ...]
    """The same as messages name several of them."""
    scored_first: bool = True
    """Whether its units are scored on the dense model, before anything is pruned, and not layer by layer."""
    sums_weights: bool = False
    """Whether the scores of a unit's weights, added up, are a score of the unit."""
    spread: bool = False
    """Whether an allocator decides the sparsity of each layer."""
    not_spread: str = "nothing to spread over blocks"
    """Said of it where that is not so."""
    tried: bool = False
    """Whether trial prunings of single weights predict its loss."""
    adds: bool = False
    """Whether its units are added to the model: the inverse of a removal."""
    leaves_zeros: bool = False
    """Whether the result has zeros in place of what was removed, which a refiner can move."""

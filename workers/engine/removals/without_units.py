"""Trained weights without the units that go: zero in the columns that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.engine.contracts.facts import Units


def without_units(merged: Callable[[str, Tensor], Tensor], units: Units) -> Callable[[str, Tensor], Tensor]:
    """`merged`, with zeros in the weights that read units whose score is below zero: then nothing depends on them."""
    going = {family.reader.tensor: torch.tensor([score < 0 for score in units.of(family)]) for family in units.families}

    def found(name: str, stored: Tensor) -> Tensor:
        weight = merged(name, stored)
        gone_U = going.get(name)
        if gone_U is None or not bool(gone_U.any()):
            return weight
        gone_I = gone_U.repeat_interleave(weight.shape[1] // len(gone_U)).to(weight.device)
        return weight.masked_fill(gone_I, 0)

    return found

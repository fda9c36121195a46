"""What methods receive and return: facts about a linear layer, its input statistics, one measurement.

Import-light. O = output features (rows of the weight), I = input features (columns).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LinearFacts:
    """A prunable linear layer as known without its weights."""

    name: str
    """Module path in the model, e.g. `model.layers.0.self_attn.q_proj`."""
    block: int
    """Index of its decoder block, from 0."""
    stream: str
    """Inputs it reads; layers of a block with the same stream share statistics, e.g. `attention_input`."""
    shape: tuple[int, int]
    """(O, I)."""

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class LinearStats:
    """Statistics of one input stream over all calibration tokens; a field is None unless a method needs it."""

    tokens: int = 0
    """How many calibration tokens went into the statistics."""
    input_sq_mean_I: Tensor | None = None
    """Mean over tokens of x_i squared, float32 [I]."""


@dataclass(frozen=True)
class Measurement:
    """One number about one model."""

    name: str
    """Slash-separated, unique in a report, e.g. `perplexity/heldout.txt`."""
    value: float
    unit: str
    higher_is_better: bool | None = None
    """None where neither direction is a goal (a plain count)."""
    stderr: float | None = None
    """Standard error or spread of `value` in `unit`; None where the number is exact."""
    note: str = ""

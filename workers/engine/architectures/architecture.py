"""What is known of a model's structure without its weights: its blocks, their linear layers, and what is coupled.

Import-light. O = output features (rows of a weight), I = input features (columns).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workers.engine.architectures.llama import STREAMS

Kind = Literal["head", "channel", "hidden"]


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
class Member:
    """A tensor that units of a family own slices of."""

    tensor: str
    """Full name, e.g. `model.layers.0.self_attn.q_proj.weight`."""
    axis: int
    """Along which the units lie, one after the other."""


@dataclass(frozen=True)
class Family:
    """Units of one kind in one block."""

    block: int
    kind: Kind
    units: int
    members: tuple[Member, ...]
    """Those that write the units first, last the matrix that reads them (`reader`)."""
    unit_parameters: int
    """Of one unit, without biases: what counts towards a sparsity."""
    unit_biases: int

    @property
    def reader(self) -> Member:
        """The linear layer whose inputs the units are."""
        return self.members[-1]


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama layout."""

    model_type: str
    blocks: int
    layers: tuple[LinearFacts, ...]
    """All prunable layers, block by block in the order of the forward pass."""
    hidden_size: int
    vocabulary: int
    context_length: int

    @property
    def prunable_parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    def block(self, index: int) -> list[LinearFacts]:
        """The layers of one block."""
        return list(self.layers[index * len(STREAMS) : (index + 1) * len(STREAMS)])

    def streams(self, block: int) -> dict[str, list[LinearFacts]]:
        """Stream -> the layers of one block that read it, in the order of the forward pass."""
        found: dict[str, list[LinearFacts]] = {}
        for layer in self.block(block):
            found.setdefault(layer.stream, []).append(layer)
        return found

"""The structure of a model, known without its weights: its blocks, their linear layers, and coupled slices.

A `Layout` is a table that says how a group of families names the parts of a model; an `Architecture` is one model's.
Import-light. O = output features (rows of a weight), I = input features (columns), D = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle

Kind = str
"""Of a unit: `head`, a key/value head with the query heads that share it, `channel`, one of the MLP, `hidden`, a
dimension of the vector that blocks read and add to, or another that a file of `removals/` names."""


@dataclass(frozen=True)
class Projection:
    """A linear layer that every block of a layout has."""

    name: str
    """Module path below the block."""
    stream: str
    """Its inputs: layers of a block with the same stream read the same tensor and share statistics."""
    reads: Kind
    """Kind of unit that its inputs belong to."""
    writes: Kind
    """Kind of unit that its outputs belong to; those of `hidden` are added to the hidden vector."""
    cached: bool = False
    """Whether its outputs are kept while a text is decoded: keys and values."""


@dataclass(frozen=True)
class Layout:
    """Names of the parts of a model, and which layers read the same input. All blocks have the same layers."""

    name: str
    blocks: str
    """Module path of the list of blocks; its parent is the decoder."""
    embedding: str
    final_norm: str
    head: str
    """The output head; stored only where it is not tied to the embedding."""
    layers: tuple[Projection, ...]
    """The linear layers of a block, in the order of the forward pass."""
    attention: str
    """Module path below the block. Its other tensors depend on the heads."""
    mlp: str
    """The same of the MLP and its channels."""
    of_each_head: tuple[str, ...] = ()
    """Path endings of modules that compute on the dimensions of one head; all heads share them."""
    plain_hidden: tuple[str, ...] = ()
    """Model types in which only norms compute with the number of hidden dimensions."""

    @property
    def decoder(self) -> str:
        """Module path of the parent of the blocks."""
        return self.blocks.rpartition(".")[0]

    @property
    def embedding_weight(self) -> str:
        """Name of the embedding's tensor."""
        return f"{self.embedding}.weight"

    @property
    def head_weight(self) -> str:
        """Name of the output head's tensor."""
        return f"{self.head}.weight"

    def block(self, index: int) -> str:
        """Module path of a block."""
        return f"{self.blocks}.{index}"

    def split(self, name: str) -> tuple[int, str] | None:
        """(block, path below it) of a module or tensor; None outside of blocks."""
        if not name.startswith(f"{self.blocks}."):
            return None
        number, _, below = name.removeprefix(f"{self.blocks}.").partition(".")
        return (int(number), below) if number.isascii() and number.isdigit() else None

    def in_block(self, name: str, index: int) -> str:
        """The name of the same module or tensor in another block; its own outside of blocks."""
        found = self.split(name)
        if found is None:
            return name
        return f"{self.block(index)}.{found[1]}" if found[1] else self.block(index)

    def below(self, name: str) -> str:
        """Path of a module or tensor of a block below that block."""
        return name.removeprefix(f"{self.blocks}.").partition(".")[2]

    def as_head(self, name: str) -> str:
        """Name that a tensor of the embedding has in the head tied to it."""
        return f"{self.head}{name.removeprefix(self.embedding)}"

    def as_embedding(self, name: str) -> str:
        """Name under which a tensor of a head tied to the embedding is stored."""
        return f"{self.embedding}{name.removeprefix(self.head)}"

    def hidden_axis(self, tensor: str) -> int | None:
        """The axis of a tensor that indexes hidden dimensions; None where neither does."""
        module, _, part = tensor.rpartition(".")
        if module in (self.embedding, self.head):
            return 1 if part == "weight" else None
        layer = self._projection(module)
        if layer is None:
            return None if module.endswith(self.of_each_head) else 0  # norms of the hidden vector
        if layer.writes == "hidden":
            return 0
        return 1 if layer.reads == "hidden" and part == "weight" else None

    def is_hidden_norm(self, tensor: str) -> bool:
        """Whether a tensor holds the gains of a norm of the hidden vector."""
        module, _, part = tensor.rpartition(".")
        return part == "weight" and self.hidden_axis(tensor) == 0 and self._projection(module) is None

    def _projection(self, module: str) -> Projection | None:
        found = self.split(module)
        return None if found is None else self._by_name.get(found[1])

    @cached_property
    def _by_name(self) -> dict[str, Projection]:
        return {layer.name: layer for layer in self.layers}


@dataclass(frozen=True)
class LinearFacts:
    """A prunable linear layer, without its weights."""

    name: str
    """Module path in the model."""
    block: int
    """Index of its decoder block, from 0."""
    stream: str
    """Name of its inputs, e.g. `attention_input`; layers of a block with the same stream share statistics."""
    shape: tuple[int, int]
    """(O, I)."""

    @property
    def weight(self) -> str:
        """Name of the tensor that holds its weight [O, I]."""
        return f"{self.name}.weight"

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Member:
    """A tensor that units of a family own slices of."""

    tensor: str
    """Full name."""
    axis: int
    """Axis along which the units lie, one after the other."""

    @property
    def is_bias(self) -> bool:
        return self.tensor.endswith(".bias")


@dataclass(frozen=True)
class Family:
    """Units of one kind in one block."""

    block: int
    kind: Kind
    units: int
    members: tuple[Member, ...]
    """Those that write the units first, last the matrix that reads them (`reader`)."""
    unit_parameters: int
    """Parameters of one unit, without biases, as a sparsity counts them."""
    unit_biases: int

    @property
    def reader(self) -> Member:
        """The linear layer that reads the units."""
        return self.members[-1]


@dataclass(frozen=True)
class Architecture:
    """One decoder."""

    layout: Layout
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
        count = len(self.layout.layers)
        return list(self.layers[index * count : (index + 1) * count])

    def streams(self, block: int) -> dict[str, list[LinearFacts]]:
        """Stream -> the layers of one block that read it, in the order of the forward pass."""
        found: dict[str, list[LinearFacts]] = {}
        for layer in self.block(block):
            found.setdefault(layer.stream, []).append(layer)
        return found

    def projections(self, block: int | None = None) -> Iterator[tuple[LinearFacts, Projection]]:
        """The prunable layers, of one block or of all, each with its row of the layout."""
        return zip(self.layers if block is None else self.block(block), cycle(self.layout.layers), strict=False)

    def reading(self, kind: Kind, block: int | None = None) -> list[LinearFacts]:
        """The layers, of one block or of all, whose inputs belong to units of a kind."""
        return [layer for layer, projection in self.projections(block) if projection.reads == kind]

    def writing(self, kind: Kind, block: int | None = None) -> list[LinearFacts]:
        """The layers, of one block or of all, whose outputs belong to units of a kind."""
        return [layer for layer, projection in self.projections(block) if projection.writes == kind]

    def cached(self, block: int | None = None) -> list[LinearFacts]:
        """The layers, of one block or of all, whose outputs are kept while a text is decoded."""
        return [layer for layer, projection in self.projections(block) if projection.cached]

"""The structure of a model, known without its weights: its blocks, their linear layers, and coupled slices.

A `Layout` is a table that says how a group of families names the parts of a model; an `Architecture` is one model's.
Import-light. O = output features (rows of a weight), I = input features (columns), D = hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from workers.engine.architectures.fused import EACH, Fused

Kind = str
"""Of a unit: `head`, a key/value head with the query heads that share it, `channel`, one of the MLP, `expert_channel`,
one of an expert (of which each has a family of its own, `expert_channel.3`), `shared_channel`, one of the MLP beside
experts, `hidden`, a dimension of the vector that blocks read and add to, or another that a file of `removals/`
names."""


_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Projection:
    """A linear layer of a block."""

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

    def of_expert(self, expert: int) -> Projection:
        """The projection of one expert, where the name has a place for its number."""
        return replace(self, name=self.name.replace(EACH, str(expert)), stream=self.stream.replace(EACH, str(expert)))


@dataclass(frozen=True)
class Part:
    """One of the two parts of a block: what mixes tokens, or what computes on each token alone."""

    module: str
    """Module path below the block."""
    layers: tuple[Projection, ...]
    """Its linear layers, in the order of the forward pass. Those whose name holds `EACH` are there once an expert."""
    kept: tuple[str, ...] = ()
    """Paths of its other matrices, which are never pruned: routers, convolutions over time, states."""
    of_each_expert: tuple[tuple[str, int], ...] = ()
    """(tensor below the block, axis along which it has an entry for each expert), of those that are there."""

    reads_all: bool = False
    """Whether each expert is given all tokens, most of them as zeros."""

    @property
    def has_experts(self) -> bool:
        return any(EACH in layer.name for layer in self.layers)

    def projections(self, experts: int) -> tuple[Projection, ...]:
        """All its linear layers, with so many experts: expert by expert, those of all tokens after them."""
        shared = [layer for layer in self.layers if EACH not in layer.name]
        each = [layer for layer in self.layers if EACH in layer.name]
        return (*(layer.of_expert(expert) for expert in range(experts) for layer in each), *shared)


@dataclass(frozen=True)
class Layout:
    """Names of the parts of a model, and which layers read the same input.

    Names are canonical: every prunable matrix is [O, I] under a name of its own. Where files or transformers' modules
    hold something else, `stored` and `built` say where a canonical tensor lies in it.
    """

    name: str
    blocks: str
    """Module path of the list of blocks; its parent is the decoder."""
    embedding: str
    final_norm: str
    head: str
    """The output head; stored only where it is not tied to the embedding."""
    mixers: tuple[Part, ...]
    """The parts that mix tokens, of which every block has one: attention, of one or another kind, perhaps `NOTHING`."""
    mlps: tuple[Part, ...]
    """The parts that compute on each token alone, of which every block has one, perhaps `NOTHING`."""
    of_each_head: tuple[str, ...] = ()
    """Path endings of modules that compute on the dimensions of one head; all heads share them."""
    plain_hidden: tuple[str, ...] = ()
    """Model types in which only norms compute with the number of hidden dimensions."""
    stored: tuple[Fused, ...] = ()
    """The tensors of a block that files hold in another form."""
    built: tuple[Fused, ...] | None = None
    """The parameters of a block that transformers' modules hold in another form; None: the same as the files."""
    may_turn: bool = False
    """Whether files may hold the tensors of all experts transposed to how transformers saves them, which it sees by
    their shapes."""
    turned: tuple[str, ...] = ()
    """Tensors below a block that the files of a model hold so; `stored` says where their parts lie in them."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(beginning of a path below the block in files, the same in transformers' modules), where they differ; the first
    that fits counts."""
    renamed_in: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """(model type, more of them that only this family has)."""
    moved: tuple[tuple[str, str], ...] = ()
    """(beginning of a full path in files, the same in transformers' modules), where they differ."""
    after: tuple[str, ...] = ()
    """Module paths of what else computes between the blocks and the logits, beside the final norm and the head."""
    returns_tuple: bool = False
    """Whether a block of transformers returns a tuple, whose first element is the hidden states."""
    model_types: tuple[str, ...] = ()
    """The model types it is of, where the names of the matrices do not tell; empty for any."""

    def of(self, model_type: str) -> Layout:
        """The layout with the names of one family."""
        own = dict(self.renamed_in).get(model_type, ())
        return replace(self, renamed=(*own, *self.renamed)) if own else self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that blocks are made of."""
        return (*self.mixers, *self.mlps)

    @property
    def layers(self) -> tuple[Projection, ...]:
        """The linear layers of all parts."""
        return tuple(layer for part in self.parts for layer in part.layers)

    @property
    def in_modules(self) -> tuple[Fused, ...]:
        """The parameters of a block that transformers' modules hold in another form."""
        return self.stored if self.built is None else self.built

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

    def in_module(self, name: str) -> str:
        """The name of the same module or tensor in transformers' model."""
        return _replaced(self._renamed(name, self.renamed), self.moved)

    def from_module(self, name: str) -> str:
        """The canonical name of a module or tensor of transformers' model."""
        ours = _replaced(name, [(theirs, ours) for ours, theirs in self.moved])
        return self._renamed(ours, [(theirs, ours) for ours, theirs in self.renamed])

    def host(self, layer: str) -> str:
        """Path, in transformers' model, of the module that computes a linear layer."""
        found = self.split(layer)
        if found is None:
            return layer
        row = self._row(f"{found[1]}.weight")
        return self.in_module(layer if row is None else f"{self.block(found[0])}.{row.module}")

    def matrix(self, layer: LinearFacts) -> tuple[str, ...]:
        """Which of the matrices of its host a layer lies in: the tensor below the block, and the expert's number."""
        below = f"{self.below(layer.name)}.weight"
        row = self._row(below)
        if row is None:
            return ()
        number = _NUMBER.search(below) if row.stacked else None
        return (row.tensor, number[0]) if number else (row.tensor,)

    def of_experts(self, layer: LinearFacts) -> bool:
        """Whether a layer is one of an expert's, which are computed together."""
        row = self._row(f"{self.below(layer.name)}.weight")
        return row is not None and row.stacked

    def in_block(self, name: str, index: int) -> str:
        """The name of the same module or tensor in another block; its own outside of blocks."""
        found = self.split(name)
        if found is None:
            return name
        return f"{self.block(index)}.{found[1]}" if found[1] else self.block(index)

    def below(self, name: str) -> str:
        """Path of a module or tensor of a block below that block, by its canonical name or transformers'."""
        blocks = self.blocks if name.startswith(f"{self.blocks}.") else self.in_module(self.blocks)
        return name.removeprefix(f"{blocks}.").partition(".")[2]

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

    def _renamed(self, name: str, pairs: Sequence[tuple[str, str]]) -> str:
        found = self.split(name)
        if found is None:
            return name
        return f"{self.block(found[0])}.{_replaced(found[1], pairs)}" if found[1] else name

    def _row(self, tensor: str) -> Fused | None:
        """The row of the parameter, in transformers' modules, that holds a canonical tensor of a block."""
        return self._hosts.get(tensor) or self._hosts.get(_NUMBER.sub(f".{EACH}.", tensor, count=1))

    @cached_property
    def expert_names(self) -> re.Pattern[str]:
        """Names of the modules and tensors of single experts: (before, number, after) of the expert's number."""
        layers = {layer.name for part in self.mlps for layer in part.layers if EACH in layer.name}
        begins, ends = ("|".join(sorted({re.escape(name.partition(EACH)[side]) for name in layers})) for side in (0, 2))
        return re.compile(rf"({re.escape(self.blocks)}\.\d+\.(?:{begins}))(\d+)((?:{ends})(?:\..*)?)", re.ASCII)

    @cached_property
    def _hosts(self) -> dict[str, Fused]:
        return {part: row for row in self.in_modules for part in row.parts}

    @cached_property
    def _by_name(self) -> dict[str, Projection]:
        return {layer.name: layer for layer in self.layers}


def _replaced(path: str, pairs: Sequence[tuple[str, str]]) -> str:
    """A path with the first of the beginnings that fits replaced."""
    for before, after in pairs:
        if path == before or path.startswith(f"{before}."):
            return f"{after}{path.removeprefix(before)}"
    return path


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
    reads: Kind = "hidden"
    """Kind of unit that its inputs belong to."""
    writes: Kind = "hidden"
    """Kind of unit that its outputs belong to; those of `hidden` are added to the hidden vector."""
    cached: bool = False
    """Whether its outputs are kept while a text is decoded: keys and values."""

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
    groups: int = 1
    """Consecutive groups of the units, all of which must lose as many."""
    shared: bool = False
    """Whether every block has the same units, as hidden dimensions: one goes from all blocks."""
    is_block: bool = False
    """Whether its one unit is the block itself, which no layer reads."""

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
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Numbers of outputs by which `Layout.stored` tells parts of one tensor apart."""
    new_blocks: frozenset[int] = frozenset()
    """Of a grown model, the blocks that were added."""
    sent: int = 0
    """Experts of a mixture that a token is sent to; 0 without mixtures."""

    @cached_property
    def prunable_parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @cached_property
    def largest_block(self) -> int:
        """Parameters of the prunable layers of the block that has most."""
        return max(sum(layer.parameters for layer in layers) for layers in self._by_block)

    @cached_property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """(O, I) of the layers, each once."""
        return frozenset(layer.shape for layer in self.layers)

    @cached_property
    def expert_parameters(self) -> tuple[int, ...]:
        """Parameters of the matrices of each block's experts."""
        return tuple(
            sum(layer.parameters for layer in layers if self.layout.of_experts(layer)) for layers in self._by_block
        )

    @property
    def has_experts(self) -> bool:
        """Whether a block is a mixture of experts."""
        return any(self.expert_parameters)

    def is_new(self, name: str) -> bool:
        """Whether a module or tensor, of the files or of transformers' model, belongs to a block that was added."""
        found = self.layout.split(name) or self.layout.split(self.layout.from_module(name))
        return found is not None and found[0] in self.new_blocks

    @cached_property
    def _by_block(self) -> list[list[LinearFacts]]:
        found: list[list[LinearFacts]] = [[] for _ in range(self.blocks)]
        for layer in self.layers:
            found[layer.block].append(layer)
        return found

    @cached_property
    def _streams(self) -> list[dict[str, list[LinearFacts]]]:
        found: list[dict[str, list[LinearFacts]]] = [{} for _ in range(self.blocks)]
        for layer in self.layers:
            found[layer.block].setdefault(layer.stream, []).append(layer)
        return found

    def block(self, index: int) -> list[LinearFacts]:
        """The layers of one block."""
        return list(self._by_block[index])

    def streams(self, block: int) -> dict[str, list[LinearFacts]]:
        """Stream -> the layers of one block that read it, in the order of the forward pass."""
        return {stream: list(layers) for stream, layers in self._streams[block].items()}

    def matrices(self) -> list[tuple[str, tuple[int, int]]]:
        """(path of its module, (O, I)) of every matrix of transformers' model that holds linear layers of the blocks.
        Experts have one each."""
        found: dict[tuple[str, ...], tuple[int, int]] = {}
        for layer in self.layers:
            key = (self.layout.host(layer.name), *self.layout.matrix(layer))
            found[key] = found.get(key, (0, 0))[0] + layer.shape[0], layer.shape[1]
        return [(key[0], shape) for key, shape in found.items()]

    def reading(self, kind: Kind, block: int | None = None) -> list[LinearFacts]:
        """The layers, of one block or of all, whose inputs belong to units of a kind."""
        return [layer for layer in self._of(block) if layer.reads == kind]

    def writing(self, kind: Kind, block: int | None = None) -> list[LinearFacts]:
        """The layers, of one block or of all, whose outputs belong to units of a kind."""
        return [layer for layer in self._of(block) if layer.writes == kind]

    def caching(self, block: int | None = None) -> list[LinearFacts]:
        """The layers, of one block or of all, whose outputs are kept while a text is decoded."""
        return [layer for layer in self._of(block) if layer.cached]

    def _of(self, block: int | None) -> Sequence[LinearFacts]:
        return self.layers if block is None else self._by_block[block]

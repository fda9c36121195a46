"""New blocks: the inverse of a removal. Blocks are added between those that stay as they are. Import-light.

New blocks are made tensor by tensor: all of one path below a block together, as what is learnt of the dense blocks'
tensors serves all new ones. Each is kept as a resume point.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol, TypeVar

from workers.engine.architectures.built import value
from workers.engine.architectures.kept_blocks import FIRST, bound_to_numbers
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.growing import GrowMethodParams, Stack
from workers.engine.contracts.protocols import P_contra
from workers.engine.contracts.removes import Removes
from workers.engine.errors import InvalidSpec, NumericalFailure, UnsupportedModel
from workers.engine.registry import grower
from workers.engine.removals.base import Edit, Removal
from workers.engine.removals.outcome import Outcome, config_after
from workers.engine.removals.runtimes import stock_checkpoint
from workers.engine.report import Growth, NewBlock, Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Units
    from workers.engine.contracts.growing import Grown
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.removals.base import Prospect
    from workers.engine.report import Report, Runtime
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.clock import Clock
    from workers.engine.store.run import Run

NEW_BLOCKS = Removes("new_blocks", units=(), plurals=(), adds=True)
P = TypeVar("P", bound=GrowMethodParams)


class BlockGrower(Protocol[P_contra]):
    """`(stack, params) -> grown`: one tensor of every new block, from that of all dense blocks."""

    def __call__(self, stack: Stack, params: P_contra, /) -> Grown: ...


def block_grower(params: type[P], *, paper: str) -> Callable[[BlockGrower[P]], BlockGrower[P]]:
    """Register a method that makes decoder blocks."""
    return grower(params, adds=NEW_BLOCKS, paper=paper)


@dataclass(frozen=True)
class GrownModel(Outcome):
    """Structure of a result with more blocks."""

    field: ClassVar[str] = "/grow"


@dataclass(frozen=True)
class GrowBlocks(Edit):
    """Leaves dense blocks as they are, and has the spec's method make the new ones."""

    spec: CompressionSpec
    model: LoadedModel

    def prepare(self, run: Run) -> None:
        paths = self._paths()
        run.events.progress(0, len(paths), "tensor")
        for number, path in enumerate(paths):
            if run.checkpoint.load_json(_made(number)) is None:
                self._grow(number, path, run)
            run.events.progress(number + 1, len(paths), "tensor")

    def new_block(self, index: int, run: Run) -> Mapping[str, Tensor]:
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for number in range(len(self._paths())):
            if (file := run.checkpoint.new_tensor(index, number)).exists():
                found |= load_file(file)
        return found

    def _paths(self) -> list[str]:
        """Paths below a block of every tensor of the new blocks."""
        like = {self.outcome.blocks[index] for index in self.outcome.new}
        within = [self.outcome.layout.split(name) for name in self.model.source.tensors]
        return sorted({found[1] for found in within if found is not None and found[0] in like})

    def _grow(self, number: int, path: str, run: Run) -> None:
        """Make the tensors at one path, and keep them."""
        outcome, events = self.outcome, run.events
        places = {index: self._name(outcome.blocks[index], path) for index in outcome.new}
        places = {index: name for index, name in places.items() if name in self.model.source.tensors}
        with run.checkpoint.scratch_file() as file:
            grown: Grown = self.spec.editor.function(self._stack(path, list(places), file), self.spec.edit)
            for (index, name), tensor in zip(places.items(), grown.tensors, strict=True):
                run.checkpoint.save_new_tensor(index, number, {name: self._shipped(name, tensor)})
        fit = grown.fit
        if fit is not None:
            events.log(
                f"{path}: on known blocks its network errs by {fit.error:.3f} of their norm, the mean of the blocks "
                f"around by {fit.error_of_mean:.3f}"
            )
        run.checkpoint.save_json(_made(number), {"tensor": path} | (vars(fit) if fit else {}))

    def _stack(self, path: str, new: Sequence[int], file: BinaryIO) -> Stack:
        from workers.engine.files.tensors import read_tensor
        from workers.engine.store.scratch_rows import ScratchRows

        architecture, model = self.model.architecture, self.model
        layout, blocks = architecture.layout, architecture.blocks

        adding = {layout.below(layer.name) for layer in architecture.writing("hidden")}

        def read(block: int) -> Tensor:
            return read_tensor(model.slices[self._name(block, path)]).to(model.device)

        return Stack(
            name=path,
            blocks=blocks,
            read=read,
            like=[self.outcome.blocks[index] for index in new],
            is_matrix=path in {layout.below(layer.weight) for layer in architecture.layers},
            adds=path.rpartition(".")[0] in adding,
            seed=zlib.crc32(f"{self.spec.seed} {path}".encode()),
            rows=lambda width: ScratchRows(file, blocks, width),
        )

    def _name(self, block: int, path: str) -> str:
        return f"{self.outcome.layout.block(block)}.{path}"

    def _shipped(self, name: str, tensor: Tensor) -> Tensor:
        """In the type that ships, rounded once. Raises NumericalFailure."""
        from workers.engine.files.tensors import DTYPES
        from workers.engine.maths.selection import finite

        if self.spec.package.dtype == "source":
            tensor = tensor.to(DTYPES[self.model.source.tensors[name].dtype])
        if not finite(tensor):
            raise NumericalFailure(
                f"{name}: {self.spec.edit.method} made infinite or NaN values of it for a new block",
                "use another method, or package as float32 or bfloat16",
                field="/grow/method",
            )
        return tensor.to("cpu").contiguous()


class NewBlocks(Removal):
    removes = NEW_BLOCKS
    result = "grown"
    done = "made"
    act = "growing"
    tags = ("depth-up-scaling",)
    gentler = "add fewer blocks"
    draws_widths = draws_sparsity = False

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        if (why := bound_to_numbers(source.config)) is not None:
            raise UnsupportedModel(
                f"{architecture.model_type}: {why}", "no method adds blocks to this model", field="/grow"
            )
        params = _params(spec)
        if architecture.blocks < params.least_blocks:
            raise InvalidSpec(
                f"{params.method} needs {params.least_blocks} blocks, and the model has {architecture.blocks}",
                "use `duplicate`",
                field="/grow/method",
            )
        if params.mixes and not _alike(source, architecture):
            raise UnsupportedModel(
                f"{params.method} combines tensors of several blocks, and the blocks of {source.id} are not alike",
                "use `duplicate`, which copies them",
                field="/grow/method",
            )
        if params.mixes and architecture.has_experts:
            raise UnsupportedModel(
                f"{params.method} combines tensors of several blocks, and the experts of one block are not "
                "those of the next in the same order",
                "use `duplicate`, which copies blocks",
                field="/grow/method",
            )

        for name in FIRST:
            first, found = value(source.config, name), params.arrangement(architecture.blocks)
            if type(first) is int and found != sorted(found, key=lambda block: block >= first):
                raise UnsupportedModel(
                    f"`{name}` of config.json is about the first {first} blocks: no copy of them can stand elsewhere",
                    "give `place`: `even` or `end`, where each copy follows its original",
                    field="/grow/place",
                )

    def outcome(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Outcome:
        return GrownModel(architecture.layout, _params(spec).arrangement(architecture.blocks))

    def warnings(self, spec: CompressionSpec, prospect: Prospect) -> list[str]:
        if spec.tune is None or spec.tune.distill is None:
            return []
        return [
            "`tune.distill` has the grown model learn the dense model's predictions, which it can hardly surpass then: "
            "null learns from the text"
        ]

    def of_whole(self, spec: CompressionSpec, prospect: Prospect, share: float) -> str | None:
        return None

    def runtimes(self, spec: CompressionSpec, outcome: Outcome | None) -> list[Runtime]:
        return stock_checkpoint("more layers", faster=False)

    def largest(
        self, spec: CompressionSpec, source: ModelSource, architecture: Architecture
    ) -> tuple[ModelSource, Architecture]:
        outcome = self.outcome(spec, source, architecture, None)
        layout = architecture.layout
        stored: dict[str, TensorFacts] = {}
        for name, facts in source.stored.items():
            within = layout.split(name)
            numbers = [0] if within is None else [n for n, like in enumerate(outcome.blocks) if like == within[0]]
            stored |= {layout.in_block(name, number): facts for number in numbers}
        grown = replace(source, config=config_after(source.config, outcome), stored=stored)
        return grown, replace(recognise(grown.config, grown.stored), new_blocks=frozenset(outcome.new))

    def sparsity(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None
    ) -> Mapping[str, float] | None:
        return dict.fromkeys((layer.name for layer in architecture.layers), 0.0)

    def edit(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        units: Units | None,
        sparsity: Mapping[str, float],
        clock: Clock,
    ) -> Edit:
        return GrowBlocks(self.outcome(spec, model.source, model.architecture, None), spec, model)

    def went(self, report: Report, share: str) -> str:
        new = len(report.growth.blocks) if report.growth else 0
        before = len({layer.block for layer in report.layers})
        return f"{new} decoder blocks were added to {before}"

    def extent(self, report: Report) -> tuple[str, float]:
        return "parameters added", (report.parameters_after or report.parameters) / report.parameters - 1

    def growth(self, outcome: Outcome, checkpoint: Checkpoint) -> Growth | None:
        made, number = [], 0
        while (found := checkpoint.load_json(_made(number))) is not None:
            made += [Prediction(**found)] if "error" in found else []
            number += 1
        blocks = [NewBlock(block=index, like=outcome.blocks[index]) for index in outcome.new]
        return Growth(blocks=blocks, predictions=made)


REMOVAL = NewBlocks()


def _params(spec: CompressionSpec) -> GrowMethodParams:
    assert isinstance(spec.grow, GrowMethodParams)  # its grower says so
    return spec.grow


def _made(number: int) -> str:
    """Name of the resume point that says that one of the tensors of all new blocks is made, and how well."""
    return f"grown-{number:05d}"


def _alike(source: ModelSource, architecture: Architecture) -> bool:
    """Whether all blocks have the same tensors, in the same shapes."""
    found: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
    for name, facts in source.tensors.items():
        if (within := architecture.layout.split(name)) is not None:
            found.setdefault(within[0], set()).add((within[1], facts.shape))
    return all(shapes == found[0] for shapes in found.values())

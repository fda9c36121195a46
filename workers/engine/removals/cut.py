"""Cut heads and channels out of a block's layers.

During the walk the block keeps its shapes: the layers that read the units have zeros in the removed inputs, so that the
outputs equal those of a cut block. The tensors are cut when the block is finished. I = inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from workers.engine.architectures.architecture import Family
from workers.engine.contracts.facts import LayerTask
from workers.engine.maths.unit_slices import kept_only
from workers.engine.removals.base import Edit
from workers.engine.removals.stored import as_shipped

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import LinearStats
    from workers.engine.removals.outcome import Outcome
    from workers.engine.spec import CompressionSpec


def cut_by_pruner(
    outcome: Outcome, families: Sequence[Family], spec: CompressionSpec, kept: Mapping[tuple[int, str], Sequence[int]]
) -> CutUnits:
    """The spec's pruner says what the layers that read units become. `kept`: as in `CutUnits`."""
    solve = spec.editor.function
    return CutUnits(outcome, families, spec, kept, lambda task, kept_I, stats: solve(task, kept_I, stats, spec.edit))


@dataclass(frozen=True)
class CutUnits(Edit):
    """Cuts the removed units out of every family."""

    families: Sequence[Family]
    spec: CompressionSpec
    kept: Mapping[tuple[int, str], Sequence[int]]
    """(block, kind) -> units that stay, ascending."""
    solve: Callable[[LayerTask, Tensor, LinearStats], Tensor]
    """(reader, kept_I, stats) -> its weight, zero in the inputs that go: see `UnitPruner`."""

    def looks_at(self, layers: Sequence[LinearFacts]) -> bool:
        return any(layer.weight in self._readers for layer in layers)

    def prune_stream(
        self, layers: Sequence[LinearFacts], dense: Mapping[str, Tensor], stats: LinearStats
    ) -> dict[str, Tensor]:
        readers, found = self._readers, {}
        for layer in layers:
            name = layer.weight
            found[name] = dense[name]
            if name in readers:
                task = LayerTask(layer.name, dense[name], 0.0)
                kept_I = self._kept_inputs(readers[name], dense[name])
                found[name] = as_shipped(self.spec, task, self.solve(task, kept_I, stats))
        return found

    def finish_block(self, block: int, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        families = [family for family in self.families if family.block == block]
        return kept_only(tensors, families, {family.kind: self.kept[block, family.kind] for family in families})

    @cached_property
    def _readers(self) -> dict[str, Family]:
        return {family.reader.tensor: family for family in self.families}

    def _kept_inputs(self, family: Family, weight_OI: Tensor) -> Tensor:
        width = weight_OI.shape[1] // family.units
        kept_U = weight_OI.new_zeros(family.units, dtype=bool)  # type: ignore[call-overload]
        kept_U[list(self.kept[family.block, family.kind])] = True
        kept_I: Tensor = kept_U.repeat_interleave(width)
        return kept_I

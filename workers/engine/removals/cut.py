"""Cut: what becomes of a block's layers where heads and channels are removed.

During the walk the block keeps its shapes: the layers that read the units have zeros in the inputs that go, which gives
the same outputs as a cut block. It is cut when it is done. I = inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.engine.architectures.architecture import Family
from workers.engine.contracts.facts import LayerTask
from workers.engine.contracts.params import UnitPruneParams
from workers.engine.maths.unit_slices import kept_only
from workers.engine.registry import method_of
from workers.engine.removals.weights import as_shipped
from workers.engine.removals.widths import best_units, kept_units

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import LinearStats, Units
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.removals.widths import Widths
    from workers.engine.spec import CompressionSpec


@dataclass(frozen=True)
class UnitSurgeon:
    """Cuts the lowest-scored units out of every family."""

    spec: CompressionSpec
    units: Units
    widths: Widths
    """Units that stay in every family."""

    def operate(self, layers: list[LinearFacts], dense: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Tensor]:
        """Weight name -> weight of the layers that read one stream, zero in the inputs that go. NumericalFailure."""
        readers = {family.reader.tensor: family for family in self.units.families}
        found = {}
        for layer in layers:
            name = layer.weight
            found[name] = dense[name]
            if name in readers:
                task = LayerTask(layer.name, dense[name], 0.0)
                kept_I = self._kept_inputs(readers[name], dense[name])
                prune = method_of("prune", self.spec.prune).function
                found[name] = as_shipped(self.spec, task, prune(task, kept_I, stats, self.spec.prune))
        return found

    def close_up(self, block: int, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The block's tensors without what goes."""
        families = [family for family in self.units.families if family.block == block]
        return kept_only(tensors, families, {family.kind: self._kept(family) for family in families})

    def _kept(self, family: Family) -> Sequence[int]:
        return best_units(self.units.of(family), self.widths[family.block, family.kind])

    def _kept_inputs(self, family: Family, weight_OI: Tensor) -> Tensor:
        width = weight_OI.shape[1] // family.units
        kept_U = weight_OI.new_zeros(family.units, dtype=bool)  # type: ignore[call-overload]
        kept_U[list(self._kept(family))] = True
        kept_I: Tensor = kept_U.repeat_interleave(width)
        return kept_I


def unit_surgeon(spec: CompressionSpec, model: LoadedModel, units: Units, sparsity: Mapping[str, float]) -> UnitSurgeon:
    """The cut that an allocation asks for. Raises InvalidSpec where a block cannot lose as much."""
    assert isinstance(spec.prune, UnitPruneParams)
    widths = kept_units(model.architecture.layers, units.families, sparsity, spec.prune, spec.allocate)
    return UnitSurgeon(spec, units, widths)

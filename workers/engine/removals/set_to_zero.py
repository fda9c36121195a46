"""Set single weights of the layers of a stream to zero. O = outputs, I = inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.engine.contracts.facts import LayerTask
from workers.engine.registry import method_of
from workers.engine.removals.base import Edit
from workers.engine.removals.stored import as_shipped
from workers.engine.removals.weight_scores import score

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import LinearStats
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.clock import Clock


@dataclass(frozen=True)
class SetToZero(Edit):
    """Prunes weights to zeros, and refines them where the spec says so."""

    spec: CompressionSpec
    sparsity: Mapping[str, float]
    """Layer name -> fraction to remove."""
    clock: Clock

    def prune_stream(
        self, layers: Sequence[LinearFacts], dense: Mapping[str, Tensor], stats: LinearStats
    ) -> dict[str, Tensor]:
        spec, pruner = self.spec, self.spec.editor
        tasks = []
        for layer in layers:
            weight_OI = dense[layer.weight]
            with self.clock.measure("score") if spec.score else nullcontext():
                score_OI = score(spec.score, layer, weight_OI, stats) if spec.score else None
            tasks.append(LayerTask(layer.name, weight_OI, self.sparsity[layer.name], score_OI))
        pruned = pruner.function(tasks, stats, spec.group, spec.edit)
        if spec.refine is not None:
            with self.clock.measure("refine"):
                refiner = method_of("refine", spec.refine)
                kept_of = spec.edit.kept_of
                pruned = [
                    task.weight_OI * refiner.function(task, weight_OI, stats, spec.refine, kept_of)
                    for task, weight_OI in zip(tasks, pruned, strict=True)
                ]
        return {
            layer.weight: as_shipped(spec, task, weight_OI)
            for layer, task, weight_OI in zip(layers, tasks, pruned, strict=True)
        }

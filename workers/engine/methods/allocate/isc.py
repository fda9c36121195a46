"""ISC: prunes a layer less the more sharply the loss curves in its weights (Shao et al. 2023, arXiv:2310.09499)."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.maths.spreading import shifted
from workers.engine.registry import allocator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.contracts.facts import AllocationFacts, DenseBlock


class IscParams(MethodParams):
    """Sparsity falls with a layer's rank by the trace of the loss's Hessian over its weights."""

    unmeasured: ClassVar[frozenset[str]] = frozenset({"spread"})

    method: Literal["isc"] = Field(
        "isc",
        description="Sparsity by each layer's rank in sensitivity; needs calibration data, the whole model, and some "
        "hundred random probes of it.",
    )
    spread: float = Field(
        0.1, ge=0, le=0.5, description="Half the distance between the least and the most pruned layer (its alpha)."
    )
    average: bool = Field(
        True, description="Divide the trace by the number of weights, as in the paper; false as in the released code."
    )


def measure(block: DenseBlock, params: IscParams) -> Mapping[str, float]:
    """Sensitivity of each layer: the trace of the loss's Hessian over its weights, per weight if `average` (eq. 6)."""
    return {
        layer.name: block.curvature[layer.name] / (layer.parameters if params.average else 1) for layer in block.layers
    }


@allocator(IscParams, paper="arXiv:2310.09499", needs=Stat.CURVATURE, measure=measure)
def allocate(facts: AllocationFacts, sparsity: float, params: IscParams) -> Mapping[str, float]:
    """Sparsities in even steps over the ranks, the most and the least sensitive layer 2 * spread apart (algorithm 1).

    What the paper calls sparsity there is the share of weights kept, as its code confirms. Layers of equal sensitivity
    share the lowest of their ranks. Departures: probes are drawn until the ranks agree (`model/curvature.py`);
    layers differ in size, so all are shifted by one constant to make the
    mean exact, and what would leave [0, 0.99] is spread over the other layers.
    """
    sensitivities = [facts.metrics[layer.name] for layer in facts.layers]
    in_order = sorted(sensitivities)
    step = 2 * params.spread / max(1, len(in_order) - 1)
    wanted = [-step * bisect_left(in_order, sensitivity) for sensitivity in sensitivities]
    found = shifted(wanted, [layer.parameters for layer in facts.layers], sparsity)
    return {layer.name: share for layer, share in zip(facts.layers, found, strict=True)}

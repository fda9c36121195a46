"""AlphaPruning: prunes less where the spectrum of the weights has a heavy tail (Lu et al. 2024, arXiv:2410.10912).

Needs no data. O = output features, I = input features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams
from workers.engine.maths.spreading import MOST, by_block, in_unit_range, parameters, scaled
from workers.engine.registry import allocator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import AllocationFacts, DenseBlock

_WINDOW_SIDE = 2000
_MOST_SPREAD = 0.3


class AlphaPruningParams(MethodParams):
    """Sparsity grows with alpha, the exponent of the power law that the largest squared singular values follow."""

    unmeasured: ClassVar[frozenset[str]] = frozenset({"granularity", "spread", "matrix_spread", "min_sparsity"})

    method: Literal["alpha_pruning"] = Field(
        "alpha_pruning", description="Sparsity by the tail of each block's weight spectra; needs no calibration data."
    )
    metric: Literal["alpha_peak", "alpha_mid"] = Field(
        "alpha_peak",
        description="Where the tail begins: near the peak of the spectrum where a power law fits best (the paper's), "
        "or at the middle, which is steadier.",
    )
    lower_bound: Literal["fixed", "compat"] = Field(
        "compat",
        description="`alpha_peak` only: `compat` seeks the tail's start as the released code does, practically without "
        "a lower bound; `fixed` no lower than 0.95 times the peak, as was meant.",
    )
    esd: Literal["plain", "farms"] = Field(
        "plain",
        description="Spectrum of the whole matrix, or of square windows, which takes the effect of the matrix's shape "
        "out (FARMS, arXiv:2506.06280) and up to `windows` squared times as long.",
    )
    windows: int = Field(10, ge=2, le=32, description="`farms` only: windows along each side of a matrix.")
    granularity: Literal["block", "matrix", "mixed"] = Field(
        "block",
        description="What shares a sparsity: the layers of a block by their mean alpha, each layer alone, or `mixed`: "
        "blocks by their mean alpha and then, within each block's share, layers by their own.",
    )
    spread: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Least and most pruned are in the ratio 1 - spread to 1 + spread. Default: 0.3, or less where that "
        "would nearly empty a unit.",
        examples=[0.2],
    )
    matrix_spread: float = Field(0.1, ge=0, lt=1, description="`mixed` only: the spread within a block.")
    min_sparsity: float = Field(
        0.0, ge=0, lt=1, description="No layer is asked for less than this, or than the target."
    )

    @property
    def least_sparsity(self) -> float:
        return self.min_sparsity


def measure(block: DenseBlock, params: AlphaPruningParams) -> Mapping[str, float]:
    """Alpha of each layer, in (1, 100]; small where the tail is heavy, a sign of a well-trained layer."""
    from workers.engine.maths import spectrum

    def windows(weight_OI: Tensor) -> Tensor:
        return spectrum.window_eigenvalues(weight_OI, side=_WINDOW_SIDE, count=params.windows)

    def alpha(found_N: Tensor) -> float:
        if params.metric == "alpha_mid":
            return spectrum.alpha_mid(found_N)
        return spectrum.alpha_peak(found_N, params.lower_bound)

    names = [layer.name for layer in block.layers]
    weights = [block.weights[name] for name in names]
    spectra = spectrum.of_each(windows, weights) if params.esd == "farms" else spectrum.eigenvalues_of(weights)
    return dict(zip(names, spectrum.of_each(alpha, spectra), strict=True))


@allocator(AlphaPruningParams, paper="arXiv:2410.10912", measure=measure)
def allocate(facts: AllocationFacts, sparsity: float, params: AlphaPruningParams) -> Mapping[str, float]:
    """Sparsity linear in alpha: between c(1 - spread) and c(1 + spread), with c for an exact mean.

    A block's alpha is the plain mean over its matrices, whatever their sizes, as released. Departures: nothing exceeds
    0.99, where the released code can exceed 1; the other units take the excess. Without `spread` the
    paper's search for it is replaced by 90 % of the largest that stays below 0.99, which is near what it found. `mixed`
    is named, not defined, in the paper: this is our reading.
    """
    single = params.granularity == "matrix"
    units = [[layer] for layer in facts.layers] if single else by_block(facts.layers)
    alphas = [math.fsum(facts.metrics[layer.name] for layer in unit) / len(unit) for unit in units]
    shares = _by_alpha(alphas, [parameters(unit) for unit in units], sparsity, params.spread, params.min_sparsity)
    found: dict[str, float] = {}
    for unit, share in zip(units, shares, strict=True):
        within = [share] * len(unit)
        if params.granularity == "mixed":
            alphas, weights = [facts.metrics[layer.name] for layer in unit], [layer.parameters for layer in unit]
            within = _by_alpha(alphas, weights, share, params.matrix_spread, params.min_sparsity)
        found |= zip((layer.name for layer in unit), within, strict=True)
    return found


def _by_alpha(
    alphas: Sequence[float], weights: Sequence[float], target: float, spread: float | None, least: float
) -> list[float]:
    standing = in_unit_range(alphas)
    if spread is None:
        spread = min(_MOST_SPREAD, 0.9 * _largest_spread(standing, weights, target))
    return scaled([1 - spread + 2 * spread * z for z in standing], weights, target, least=least)


def _largest_spread(standing: Sequence[float], weights: Sequence[float], target: float) -> float:
    """The spread at which the most pruned unit gets MOST: target (1 + spread) = MOST (1 - spread + 2 spread mean)."""
    mean = math.fsum(z * w for z, w in zip(standing, weights, strict=True)) / math.fsum(weights)
    slope = target + MOST - 2 * MOST * mean
    return max(0.0, MOST - target) / slope if slope > 0 else 1.0

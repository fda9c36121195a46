"""Check an allocation, and round it to N:M patterns. Import-light, as dry runs use it too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from workers.engine.errors import NumericalFailure
from workers.engine.maths.spreading import parameters
from workers.engine.registry import method_of

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import AllocationFacts
    from workers.engine.contracts.params import MethodParams


def checked(params: MethodParams, facts: AllocationFacts, target: float) -> Mapping[str, float]:
    """Layer name -> fraction to remove, in [0, 1), by an allocator; its mean is `target`, to 1e-4.

    The mean is weighted by parameters. Raises NumericalFailure if the method broke one of these promises.
    """
    method = method_of("allocate", params)
    sparsity: Mapping[str, float] = method.function(facts, target, params)
    for layer in facts.layers:
        if not 0 <= sparsity[layer.name] < 1:
            raise NumericalFailure(
                f"{method.name} asks to remove {sparsity[layer.name]} of {layer.name}", "use a milder allocation"
            )
    mean = math.fsum(sparsity[layer.name] * layer.parameters for layer in facts.layers) / parameters(facts.layers)
    if abs(mean - target) > 1e-4:
        raise NumericalFailure(
            f"{method.name} spread {target} to a mean of {mean:.5f} over the layers", "use another allocation"
        )
    return sparsity


def sparsity_of_left(layers: Sequence[LinearFacts], left: Mapping[tuple[int, str], float]) -> dict[str, float]:
    """Layer name -> fraction removed. `left`: (block, kind) -> the fraction of its units that stays, 1 where it is not
    said: of those that the layer reads, of those that it writes, and of the block itself."""
    return {
        layer.name: 1
        - left.get((layer.block, layer.reads), 1.0)
        * left.get((layer.block, layer.writes), 1.0)
        * left.get((layer.block, "layer"), 1.0)
        for layer in layers
    }


def whole_groups(
    layers: Sequence[LinearFacts], sparsity: Mapping[str, float], kept_of: tuple[int, int], least: float = 0.0
) -> dict[str, float]:
    """`sparsity` in multiples of 1 / M, between keeping 1 and all of M, nearest to the pattern's mean.

    None gets less than `least`, or than the pattern has where that is less.

    By largest remainder: every unit (layers of a block that share a sparsity) keeps the whole part of M (1 - s), then
    units keep one more, greatest fraction first, until the pattern's mean N of M is kept.
    """
    n, m = kept_of
    most = max(n, math.floor(m * (1 - least) + 1e-9))
    units: dict[tuple[int, float], list[LinearFacts]] = {}
    for layer in layers:
        units.setdefault((layer.block, sparsity[layer.name]), []).append(layer)
    wanted = {unit: m * (1 - unit[1]) for unit in units}
    # 2.9999999999 is 3: an error in a float's last digit is no remainder.
    kept = {unit: min(most, max(1, math.floor(want + 1e-9))) for unit, want in wanted.items()}
    size = {unit: sum(layer.parameters for layer in members) for unit, members in units.items()}
    left = n * sum(size.values()) - sum(kept[unit] * size[unit] for unit in units)
    for unit in sorted(units, key=lambda unit: kept[unit] - wanted[unit]):
        if kept[unit] < most and left >= size[unit] / 2:
            kept[unit] += 1
            left -= size[unit]
    return {layer.name: 1 - kept[unit] / m for unit, members in units.items() for layer in members}

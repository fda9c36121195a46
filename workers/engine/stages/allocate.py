"""Allocate: the global sparsity, spread over the layers. Import-light, so that a dry run spreads it the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from workers.engine.errors import NumericalFailure
from workers.engine.registry import method_of

if TYPE_CHECKING:
    from workers.engine.spec import CompressionSpec
    from workers.engine.stats import LinearFacts


def allocate(spec: CompressionSpec, layers: Sequence[LinearFacts]) -> Mapping[str, float]:
    """Layer name -> fraction to remove, in [0, 1). The mean weighted by parameters is the spec's target, to 1e-4.

    Raises NumericalFailure if the method broke one of these promises.
    """
    method = method_of("allocate", spec.allocate)
    target = spec.prune.target
    sparsity: Mapping[str, float] = method.function(layers, target, spec.allocate)
    for layer in layers:
        if not 0 <= sparsity[layer.name] < 1:
            raise NumericalFailure(
                f"{method.name} asks to remove {sparsity[layer.name]} of {layer.name}", "use a milder allocation"
            )
    parameters = sum(layer.parameters for layer in layers)
    mean = math.fsum(sparsity[layer.name] * layer.parameters for layer in layers) / parameters
    if abs(mean - target) > 1e-4:
        raise NumericalFailure(
            f"{method.name} spread {target} to a mean of {mean:.5f} over the layers", "use another allocation"
        )
    return sparsity

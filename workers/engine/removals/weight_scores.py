"""Scores of weights: the importance of every weight of one layer. O = outputs, I = inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.errors import NumericalFailure
from workers.engine.maths.selection import finite
from workers.engine.registry import method_of

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import LinearStats
    from workers.engine.contracts.params import MethodParams


def score(params: MethodParams, layer: LinearFacts, weight_OI: Tensor, stats: LinearStats) -> Tensor:
    """Importance [O, I], finite, higher is kept. Raises NumericalFailure naming the layer."""
    method = method_of("score", params)
    score_OI: Tensor = method.function(weight_OI, stats, params)
    if not finite(score_OI):
        broken = "its weights are" if not finite(weight_OI) else f"its {method.name} scores are"
        raise NumericalFailure(
            f"{layer.name}: {broken} infinite or NaN",
            "check the dense model; a range too large for float32 scores needs another score method",
        )
    return score_OI

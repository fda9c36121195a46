"""Size: parameters, zeros and bytes of the weights as stored. Counts read from the files, exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.registry import MethodParams, evaluator
from workers.engine.stats import Measurement

if TYPE_CHECKING:
    from workers.engine.stages.evaluate import EvaluationContext


class SizeParams(MethodParams):
    """Count parameters, zeros and bytes on disk."""

    method: Literal["size"] = Field("size", description="Parameters, zeros and bytes on disk.")


@evaluator(SizeParams)
def evaluate(context: EvaluationContext, params: SizeParams) -> list[Measurement]:
    raise NotImplementedError

"""MACs: multiply-accumulate operations of one forward pass, counted from the shapes of the stored weights; exact.

Linear layers, output head and attention (full, not causal) as in LLM-Pruner (Ma et al. 2023, arXiv:2305.11627),
whose counter adds the 0.02 % that norms, activations and rotations take. Zeros are multiplied like other weights. Of a
mixture the experts that a token is sent to count, not its router.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.facts import Measurement
from workers.engine.contracts.params import MethodParams
from workers.engine.planning.result_size import macs
from workers.engine.registry import evaluator

if TYPE_CHECKING:
    from workers.engine.contracts.evaluation import EvaluationContext


class MacsParams(MethodParams):
    """Count the multiplications of a forward pass."""

    method: Literal["macs"] = Field("macs", description="Multiply-accumulate operations, from the shapes.")
    sequence_length: int = Field(64, ge=1, le=1_048_576, description="Tokens of the pass; the literature's 64.")

    @property
    def tokens_at_once(self) -> int:
        return 0  # nothing is run: shapes are read


@evaluator(MacsParams, whole_model=False)
def evaluate(context: EvaluationContext, params: MacsParams) -> list[Measurement]:
    """`macs/<tokens>`: of one sequence of so many tokens."""
    count = macs(context.architecture, params.sequence_length)
    return [Measurement(f"macs/{params.sequence_length}", count, "MACs", higher_is_better=False)]

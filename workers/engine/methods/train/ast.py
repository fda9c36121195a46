"""AST: trains dense weights behind masks of the smallest, which decay ever more (Huang et al. 2024, arXiv:2407.20584).

Made for 2:4. Defaults are those of the authors' code: masks by size every 10 steps, a decay that grows to 6e-5 and goes
into AdamW's second moment but not the first, distillation on logits at temperature 2 with two thirds of the loss. The
rate falls linearly to 0, as of all trainings here, where theirs is a cosine to a tenth.

Departures. After the ramp masks hold still, where the authors take them anew to the end, when few weights still change
sides; so the ramp is longer than theirs (a fifth to a quarter of the steps). The decay's sign is right, which a bitwise
`~` of an integer mask inverted in their GPT-2 code. Without a pattern the smallest weights of a layer go, not of each
row. SLoRB, a low-rank branch beside every layer, is left out: a plain checkpoint has no place for the branch, and
merged into the weights it would fill the zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.train_params import TrainMethodParams
from workers.engine.contracts.tuning_params import Distill, LearningRate, WeightBytes
from workers.engine.registry import trainer

if TYPE_CHECKING:
    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.training import Procedure, Target


class AstParams(TrainMethodParams):
    """Train dense weights behind masks, and have what is masked decay."""

    method: Literal["ast"] = Field(
        "ast",
        description="Train all weights, the smallest behind a mask where they decay; they may come back until the ramp "
        "ends. Best for 2:4 and other patterns.",
    )
    learning_rate: LearningRate = 2e-5
    ramp: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the steps in which the decay grows from 0 and masks are taken anew; then they stay.",
    )
    masked_decay: float = Field(
        6e-5, ge=0, le=1, description="Pull of masked weights towards 0, beside the gradient, at the end of the ramp."
    )
    interval: int = Field(10, ge=1, le=1_000_000, description="Steps between two masks.")
    distill: Distill | None = Field(
        default_factory=lambda: Distill(weight=0.67, temperature=2.0),
        description="Learn from the dense model, which is then in memory too: with two thirds of the loss and at "
        "temperature 2, unless said. null learns from the text alone.",
    )

    @property
    def divides(self) -> bool:
        return True

    @property
    def weight_bytes(self) -> WeightBytes:
        # A mask; the dense weights while masked ones compute; the weights' sizes.
        return WeightBytes(always=1, passing=4, updating=4, looking=4)


@trainer(AstParams, paper="arXiv:2407.20584", units=("weight",))
def prepare(model: Module, architecture: Architecture, target: Target, params: AstParams) -> Procedure:
    """All parameters train; those of linear layers of the blocks behind masks."""
    from workers.engine.training.ast import Ast

    ramp = max(1, round(params.steps * params.ramp))
    return Ast(model, architecture, target, ramp=ramp, interval=params.interval, pull=params.masked_decay)

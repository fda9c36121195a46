"""Gradual: sets the smallest weights to zero, ever more of them, while the model trains (arXiv:1710.01878).

Zhu and Gupta 2017. The sparsity rises as 1 - (1 - t)^3, fast at first; then the mask stays and what is left trains on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.train_params import TrainMethodParams
from workers.engine.contracts.tuning_params import LearningRate, Moments, WeightBytes
from workers.engine.registry import trainer

if TYPE_CHECKING:
    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.training import Procedure, Target


class GradualParams(TrainMethodParams):
    """Zero the smallest weights little by little."""

    method: Literal["gradual"] = Field("gradual", description="Zero the smallest weights little by little.")
    learning_rate: LearningRate = 3e-4
    ramp: float = Field(0.5, gt=0, le=1, description="Fraction of the steps in which the sparsity rises.")
    interval: int = Field(10, ge=1, description="Steps between two masks while it rises.")
    moments: Moments = "float32"

    @property
    def eight_bit(self) -> bool:
        return self.moments == "8bit"

    @property
    def divides(self) -> bool:
        return True

    @property
    def weight_bytes(self) -> WeightBytes:
        return WeightBytes(always=1, updating=4)  # a mask; the weights' sizes


@trainer(GradualParams, paper="arXiv:1710.01878", units=("weight",))
def prepare(model: Module, architecture: Architecture, target: Target, params: GradualParams) -> Procedure:
    """All weights train that are left; those that are gone stay so."""
    from workers.engine.training.gradual import Gradual

    return Gradual(model, architecture, target, max(1, int(params.steps * params.ramp)), params.interval)

"""ELSA: draws weights to a sparse copy of them while the model trains, by ADMM (Lee et al. 2025, arXiv:2510.01650).

For sparsities above 70 %, where masks made at once lose most. Defaults are the authors': a sparse copy every 32 steps,
by Adam's second moments, which forget a twentieth a step, a penalty of 0.01. A learning rate three times theirs suits
`distill` (their ablation).

Departures. Its sparse copies are those of a layer, at the sparsity that the allocation gave it. The rate rises over the
first twentieth of the steps, as of all trainings here, where theirs begins at its height. With `settle` what is left
trains on behind the final mask for the last steps; 0 ends with the projection, as theirs does.
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
    from workers.engine.contracts.tuning_params import DescribedModel


class ElsaParams(TrainMethodParams):
    """Draw weights to a sparse copy of them."""

    method: Literal["elsa"] = Field(
        "elsa",
        description="Draw all weights to a sparse copy of them, ever harder as long as they differ. For 70 % and more; "
        "holds two copies of the weights beside the optimiser's.",
    )
    steps: int = Field(4096, ge=1, le=1_000_000, description="Updates of the weights, each on `batch` windows.")
    learning_rate: LearningRate = 2e-4
    penalty: float = Field(0.01, gt=0, le=1000, description="How hard weights are drawn to the sparse copy (lambda).")
    interval: int = Field(32, ge=1, le=1_000_000, description="Steps between two sparse copies.")
    nearness: Literal["curvature", "size"] = Field(
        "curvature",
        description="Of a sparse copy: weights count by Adam's second moments (the paper's), or by their size alone "
        "(an option of the authors' code).",
    )
    settle: float = Field(
        0.0, ge=0, lt=1, description="Share of the steps, the last ones, that train what is left behind the final mask."
    )
    moments: Moments = "float32"

    @property
    def eight_bit(self) -> bool:
        return self.moments == "8bit"

    @property
    def divides(self) -> bool:
        return True

    @property
    def weight_bytes(self) -> WeightBytes:
        # A mask, z and u; x + u and its scores; another mask, and the dense weights while sparse ones are measured.
        return WeightBytes(always=1 + 8, updating=8, looking=1 + 4)

    @property
    def projection(self) -> int:
        """The step that ends with the final mask."""
        return max(1, self.steps - round(self.steps * self.settle))

    def warnings(self, source: DescribedModel) -> list[str]:
        if self.interval < self.projection:
            return []
        return [
            f"elsa: no sparse copy is made between the first and the final mask, after step {self.projection}: lower "
            f"`interval`, {self.interval} now, or take more steps"
        ]


@trainer(ElsaParams, paper="arXiv:2510.01650", units=("weight",))
def prepare(model: Module, architecture: Architecture, target: Target, params: ElsaParams) -> Procedure:
    """All parameters train; those of linear layers of the blocks are drawn to sparse ones."""
    from workers.engine.training.elsa import Elsa

    return Elsa(
        model,
        architecture,
        target,
        projection=params.projection,
        interval=params.interval,
        penalty=params.penalty,
        curved=params.nearness == "curvature",
    )

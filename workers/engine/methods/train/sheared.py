"""Sheared: hard-concrete gates learn which units go, beside all weights (Xia et al. 2023, arXiv:2310.06694).

Constraints of the asked-for counts, one a kind, are held by multipliers that ascend; at the end exactly these counts
go. Where the training spreads the sparsity itself there is one constraint, on all parameters. Rates, warm-up of the
target and gates are those of the authors' code, for 0.42 billion tokens. Other than there:

- A head's gate is that of a key/value head with the query heads that share it; one layer reads it, and is gated.
- The gradient of the weights alone is clipped: that of gates grows with the multipliers, and would drown it.
- AdamW's second moment forgets a thousandth a step (0.999), where theirs forgets a twentieth (0.95).
- Gates are drawn once a step, the same for all of its windows, where theirs are drawn for each device and each part of
  its windows.
- Hidden dimensions are gated where they are written, not a second time behind norms; a layer by what its block adds,
  where attention and MLP have a gate each.
- At the end gates of heads and channels are merged with the value they have, as there; those of hidden dimensions and
  layers become 1, since an embedding may be the output head too.
- The rate falls linearly to 0, after a twentieth of the steps, instead of as a cosine to a tenth, after a tenth of the
  steps, and the continued training that follows is the spec's `tune`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.train_params import TrainMethodParams
from workers.engine.contracts.tuning_params import LearningRate
from workers.engine.registry import trainer

if TYPE_CHECKING:
    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.training import Procedure, Target


class ShearedParams(TrainMethodParams):
    """Train gates on units, and all weights."""

    method: Literal["sheared"] = Field(
        "sheared", description="Train gates on units under constraints, and all weights."
    )
    learning_rate: LearningRate = 1e-4
    gate_rate: float = Field(1.0, gt=0, le=10, description="AdamW's, of the gates.")
    multiplier_rate: float = Field(1.0, gt=0, le=10, description="AdamW's, of the multipliers of the constraints.")
    ramp: float = Field(0.2, ge=0, le=1, description="Fraction of the steps in which the target rises from 0.")

    @property
    def divides(self) -> bool:
        return True


@trainer(ShearedParams, paper="arXiv:2310.06694", units=("head", "channel", "hidden", "layer"))
def prepare(model: Module, architecture: Architecture, target: Target, params: ShearedParams) -> Procedure:
    """All parameters are trained, embeddings and norms included."""
    from workers.engine.training.gated import Gated, GateSetting
    from workers.engine.training.trainable import unfrozen

    setting = GateSetting(params.gate_rate, params.multiplier_rate, round(params.ramp * params.steps), params.steps)
    return Gated(model, architecture, target, unfrozen(model, architecture, lambda _: True), setting)

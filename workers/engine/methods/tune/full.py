"""Full: trains every weight that is left, on text, with AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.tuning_params import AllOrNewParams, LearningRate
from workers.engine.registry import tuner

if TYPE_CHECKING:
    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Trainable
    from workers.engine.contracts.tuning_params import DescribedModel


class FullParams(AllOrNewParams):
    """Train every weight."""

    method: Literal["full"] = Field("full", description="Train every weight: the most memory, and the most room.")
    learning_rate: LearningRate = 3e-4

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        if self.new_blocks_only:
            return sum(f.parameters for name, f in source.tensors.items() if self.trains(architecture, name))
        return source.parameters


@tuner(FullParams, paper="arXiv:1711.05101")
def prepare(model: Module, architecture: Architecture, params: FullParams) -> Trainable:
    """All parameters, embeddings and norms included; a tied head trains with its embedding. Zeros stay."""
    from workers.engine.training.trainable import unfrozen

    return unfrozen(model, architecture, lambda name: params.trains(architecture, name))

"""LoRA: trains a low-rank update of every linear layer, merged in at the end (Hu et al. 2021, arXiv:2106.09685).

The recovery of LLM-Pruner (arXiv:2305.11627) and Shortened LLaMA (arXiv:2402.02834), with their rank, alpha, dropout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.tuning_params import AllOrNewParams, LearningRate
from workers.engine.registry import tuner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Trainable
    from workers.engine.contracts.tuning_params import DescribedModel


class LoraParams(AllOrNewParams):
    """Train a low-rank update of every linear layer of the blocks."""

    method: Literal["lora"] = Field("lora", description="Train a low-rank update of every linear layer, then merge it.")
    rank: int = Field(8, ge=1, le=1024, description="Of the update; at most a layer's smaller side makes sense.")
    alpha: float = Field(16.0, gt=0, le=4096, description="The update counts alpha / rank times.")
    dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the adapters' inputs that a step leaves out; those "
        "of experts' matrices are never left out, as the update is added to the weights.",
    )
    learning_rate: LearningRate = 3e-4

    @property
    def input_copies(self) -> int:
        return 2 if self.dropout else 0  # what dropout left, and what it multiplied by

    @property
    def adds_to_experts(self) -> bool:
        return True

    @property
    def block_by_block(self) -> bool:
        return True

    @property
    def begins_unchanged(self) -> bool:
        return True

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        return sum(self.rank * sum(shape) for path, shape in architecture.matrices() if self.trains(architecture, path))


@tuner(LoraParams, paper="arXiv:2106.09685")
def prepare(
    model: Module, architecture: Architecture, params: LoraParams, blocks: Iterable[int] | None = None
) -> Trainable:
    """The adapters' two factors, for each matrix of an expert too. The update of a masked layer is masked."""
    from workers.engine.training.low_rank import low_rank

    return low_rank(
        model,
        architecture,
        lambda path: params.trains(architecture, path),
        rank=params.rank,
        alpha=params.alpha,
        dropout=params.dropout,
        blocks=blocks,
    )

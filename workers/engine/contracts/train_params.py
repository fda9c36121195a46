"""Parameters of methods that prune a model while it trains. Import-light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from workers.engine.contracts.tuning_params import Distill, TrainingParams

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.tuning_params import DescribedModel


class TrainMethodParams(TrainingParams):
    """Base of their parameters. The state after the last step is pruned and ships: before it, less is gone."""

    steps: int = Field(1000, ge=1, le=1_000_000, description="Updates of the weights, each on `batch` windows.")
    distill: Distill | None = Field(
        None, description="Learn from the dense model, which is then in memory too; null learns from the text alone."
    )

    @property
    def trains_all(self) -> bool:
        return True

    @property
    def divides(self) -> bool:
        """A method says so where its `Procedure` keeps to what the contract asks of one on a divided model."""
        return False

    @property
    def read_first(self) -> str:
        """Text that the model reads before every window while it trains, and does not learn; empty for none."""
        return ""

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        """All of them, unless a method trains fewer."""
        return source.parameters

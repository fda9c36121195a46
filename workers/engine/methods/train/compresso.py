"""Compresso: gates learn which heads and channels go, beside LoRA on the frozen model (Guo et al., arXiv:2310.05015).

The hard-concrete gates are held to one constraint on all parameters by multipliers that ascend. While it trains, the
model reads before every window a prompt that tells it that it is being pruned. Rates, rank, warm-up of the target and
gates are those of the authors' code. Other than there:

- Hidden dimensions are not gated: `structured` cuts heads and channels.
- Gates are there from the first step, where theirs come after the first of eight epochs, of LoRA alone. They are drawn
  once a step, the same for all of its windows, and their rates follow the schedule, where theirs stay as they are.
- A head's gate is that of a key/value head with the query heads that share it. One layer reads the units and is gated;
  there the two that write an MLP's channels both are, which counts a gate twice.
- LoRA is on the layers that compute queries and values; where one module computes keys too, on these as well.
- The prompt is our own wording, and is not read any more once the model is pruned.
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
    from workers.engine.contracts.tuning_params import DescribedModel

PROMPT = (
    "Parts of this language model are being removed to make it smaller. Which of its attention heads and MLP channels "
    "go is learnt at this moment. Keep writing as before with what is left of them. "
)


_LEAST_CHARACTERS = 2
"""Of a token of the prompt, on average, as memory is planned."""


class CompressoParams(TrainMethodParams):
    """Train gates on heads and channels, and LoRA."""

    method: Literal["compresso"] = Field("compresso", description="Train gates on heads and channels, and LoRA.")
    learning_rate: LearningRate = 5e-5
    gate_rate: float = Field(0.1, gt=0, le=10, description="AdamW's, of the gates.")
    multiplier_rate: float = Field(0.1, gt=0, le=10, description="AdamW's, of the multipliers of the constraint.")
    ramp: float = Field(0.5, ge=0, le=1, description="Fraction of the steps in which the target rises from 0.")
    rank: int = Field(8, ge=1, le=1024, description="Of LoRA's updates.")
    alpha: float = Field(8.0, gt=0, le=4096, description="LoRA's updates count alpha / rank times.")
    prompt: str = Field(
        PROMPT,
        max_length=4096,
        description="Read before every window while the model trains, and not learnt itself; empty for none.",
    )

    @property
    def divides(self) -> bool:
        return True

    @property
    def trains_all(self) -> bool:
        return False

    @property
    def read_first(self) -> str:
        return self.prompt

    @property
    def read_tokens(self) -> int:
        return self.sequence_length + len(self.prompt) // _LEAST_CHARACTERS

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        adapted = query_value(architecture)
        return sum(self.rank * sum(shape) for path, shape in architecture.matrices() if path in adapted)


def query_value(architecture: Architecture) -> set[str]:
    """Paths of the modules that compute queries and values."""
    found = set()
    for block in range(architecture.blocks):
        writers = architecture.writing("head", block)
        layers = [
            *[layer for layer in writers if not layer.cached][:1],
            *[layer for layer in writers if layer.cached][-1:],
        ]
        found |= {architecture.layout.host(layer.name) for layer in layers}
    return found


@trainer(CompressoParams, paper="arXiv:2310.05015", units=("head", "channel"))
def prepare(model: Module, architecture: Architecture, target: Target, params: CompressoParams) -> Procedure:
    """The gates and LoRA's factors are trained."""
    from workers.engine.training.gated import Gated, GateSetting
    from workers.engine.training.low_rank import low_rank

    adapted = query_value(architecture)
    trainable = low_rank(
        model, architecture, lambda path: path in adapted, rank=params.rank, alpha=params.alpha, dropout=0.0
    )
    setting = GateSetting(params.gate_rate, params.multiplier_rate, round(params.ramp * params.steps), params.steps)
    return Gated(model, architecture, target, trainable, setting)

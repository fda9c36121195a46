"""Policy gradient: which units stay is learnt from forward passes alone (Gao et al. 2024, arXiv:2406.10576).

Every head, channel or layer has a probability to stay. In a step several models are drawn, their losses on the same
windows say how the probabilities move, and these are projected onto what the target allows. No weight changes, and
nothing is kept for a backward pass. Steps, windows, rate and estimate are those of the authors' code. Other than there:

- Where the target is free, heads and channels lose the same share, as there; the number of units that go is exact, and
  one of each kind stays in every block.
- The start looks at the inputs of the dense model on the first step's windows, instead of at those of a model already
  pruned on 128 further ones.
- The penalty on undecided probabilities, which the authors' scripts turn off, is left out.
- Infinite losses are left out like those that are no number, and the sum is divided by one less than are left: where
  one is left nothing moves. A step in which none is left ends the job, instead of being passed over.
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


class PolicyGradientParams(TrainMethodParams):
    """Learn which heads, channels or layers stay from forward passes alone."""

    method: Literal["policy_gradient"] = Field(
        "policy_gradient", description="Learn which heads, channels or layers stay from forward passes alone."
    )
    steps: int = Field(15_000, ge=1, le=1_000_000, description="Updates of the probabilities.")
    sequence_length: int = Field(128, ge=8, le=32768, description="Tokens per window.")
    learning_rate: LearningRate = Field(2e-3, description="Of the probabilities, by plain gradient descent.")
    head_rate: float | None = Field(
        None, gt=0, le=1, description="Learning rate of heads; null takes that of channels."
    )
    schedule: Literal["linear", "cosine", "warmup_stable_decay"] = Field(
        "cosine", description="How the rate falls to 0."
    )
    warmup_steps: int | None = Field(0, ge=0, description="Steps over which the rate rises; null takes a twentieth.")
    weight_decay: float = Field(0.0, ge=0, le=0, description="Probabilities do not decay.")
    gradient_checkpointing: Literal[False] = Field(False, description="There is no backward pass to keep less for.")
    samples: int = Field(2, ge=2, le=64, description="Models tried in a step, each a forward pass on its windows.")
    estimator: Literal["paper", "exact"] = Field(
        "paper",
        description="Of the gradient: the authors', whose steps are bounded near 0 and 1, or an unbiased one, which "
        "compares each model with the others of its step.",
    )
    window: int = Field(5, ge=1, description="Steps over which the losses that the paper's estimate compares with run.")
    initial: Literal["wanda", "constant"] = Field(
        "wanda",
        description="First probabilities: in the order of Wanda's scores of the weights that read a unit, or all "
        "alike.",
    )

    @property
    def divides(self) -> bool:
        return True

    @property
    def trains_all(self) -> bool:
        return False

    @property
    def passes(self) -> int:
        return self.samples * (2 if self.distill else 1)

    def blocks_back(self, source: DescribedModel, architecture: Architecture) -> int:
        return 0

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        """A number for each channel and head, of which there are fewer than key rows."""
        channels = sum(layer.shape[1] for layer in architecture.reading("channel"))
        return channels + sum(layer.shape[0] for layer in architecture.caching())


@trainer(PolicyGradientParams, paper="arXiv:2406.10576", units=("head", "channel", "layer"))
def prepare(model: Module, architecture: Architecture, target: Target, params: PolicyGradientParams) -> Procedure:
    """Only probabilities are trained; the model is frozen."""
    from workers.engine.training.sampled_masks import SampledMasks, Sampling

    sampling = Sampling(
        samples=params.samples,
        window=params.window,
        exact=params.estimator == "exact",
        from_weights=params.initial == "wanda",
        head_rate=params.head_rate,
    )
    return SampledMasks(model, architecture, target, sampling)

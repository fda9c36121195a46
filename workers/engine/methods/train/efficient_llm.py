"""EfficientLLM: heads, channels, stem go kind by kind while the model trains (Xing et al. 2025, arXiv:2502.06663).

A running estimate of each group's saliency, the loss that its removal is expected to cost, says which go; at every
removal one kind, heads or channels, whose lowest groups cost least per parameter. Variant B also has the layers that
read what goes make up for it by least squares (the optimal brain surgeon's update). The authors have published models
and not their code; what the paper leaves open is settled so:

- The saliency is half the sum of w^2 v, with AdamW's second moment v for the curvature, which costs nothing; two
  others can be chosen.
- Its text has both an alternation of removal and training and a removal before all training: `pipeline` chooses. In
  the second weights rest while groups go.
- The stem, hidden dimensions with embeddings and output head, goes where the pruner removes it (`hidden`, `shape`); no
  layer makes up for it.
- A head goes as a key/value head with the query heads that share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.train_params import TrainMethodParams
from workers.engine.contracts.tuning_params import LearningRate
from workers.engine.registry import trainer

if TYPE_CHECKING:
    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.training import Procedure, Target

_ENDS = {"alternating": 0.5, "sequential": 0.1}
"""Share of the steps after which all groups are gone, by pipeline."""
_REFRESH, _DECAY = 10, 0.9
"""Steps from one refresh of the saliency to the next, and the decay of its running mean."""


class EfficientLLMParams(TrainMethodParams):
    """Remove units one after the other, and train all weights."""

    method: Literal["efficient_llm"] = Field(
        "efficient_llm", description="Remove units one after the other, and train all weights."
    )
    learning_rate: LearningRate = 3e-4
    weight_decay: float = Field(0.1, ge=0, le=1, description="AdamW's, of everything that is trained.")
    variant: Literal["A", "B"] = Field(
        "A", description="`B`: when groups go, the layers that read them make up for it by least squares."
    )
    pipeline: Literal["alternating", "sequential"] = Field(
        "alternating",
        description="Remove and train by turns, or remove first, while weights rest, and train what is left.",
    )
    saliency: Literal["second_moment", "squared_gradient", "taylor"] = Field(
        "second_moment",
        description="Half the sum of squared weights times AdamW's second moment; the same with the squared gradient "
        "of each step; or the absolute value of the sum of weights times their gradients.",
    )
    begin: float = Field(0.05, ge=0, lt=1, description="Fraction of the steps before the first group goes.")
    end: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Fraction of the steps after which all are gone; null takes 0.5, and 0.1 where the pipeline is "
        "sequential.",
    )
    every: int = Field(10, ge=1, description="Steps from one removal to the next.")
    course: Literal["linear", "cubic"] = Field(
        "cubic", description="How what is gone grows between `begin` and `end`: evenly, or fast at first."
    )
    dampening: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Of variant B: added to the diagonal of the inputs' Gram matrix, as a fraction of its mean.",
    )

    recent: int = Field(
        10,
        ge=1,
        description="Of variant B: steps up to a removal whose inputs the least squares see, none before the "
        "last removal. They should have some times as many tokens as the MLP has channels.",
    )

    @model_validator(mode="after")
    def _time_to_remove(self) -> EfficientLLMParams:
        if self.steps < 2:
            raise PydanticCustomError("too_few_steps", "the first step measures: give at least 2 `steps`")
        if self.ends_at <= self.begin:
            raise PydanticCustomError(
                "no_time_to_remove",
                "groups go between `begin`, {begin}, and `end`, {end}: leave some steps",
                {"begin": self.begin, "end": self.ends_at},
            )
        return self

    @property
    def divides(self) -> bool:
        return True

    def whole_numbers(self, architecture: Architecture) -> int:
        """Of variant B, Gram matrices of the inputs of what reads heads and channels."""
        read = [layer for kind in ("head", "channel") for layer in architecture.reading(kind)]
        return sum(layer.shape[1] ** 2 for layer in read) if self.variant == "B" else 0

    @property
    def ends_at(self) -> float:
        """Fraction of the steps after which all groups are gone."""
        return _ENDS[self.pipeline] if self.end is None else self.end


@trainer(EfficientLLMParams, paper="arXiv:2502.06663", units=("head", "channel", "hidden"))
def prepare(model: Module, architecture: Architecture, target: Target, params: EfficientLLMParams) -> Procedure:
    """All parameters are trained, embeddings and norms included."""
    from workers.engine.training.pruning_aware import PruningAware, Removing

    begins = min(params.steps - 1, max(1, round(params.begin * params.steps)))  # one step at least removes
    removing = Removing(
        begins=begins,
        ends=min(params.steps, max(begins + 1, round(params.ends_at * params.steps))),
        every=params.every,
        course=params.course,
        saliency=params.saliency,
        decay=_DECAY,
        refresh=_REFRESH,
        dampening=params.dampening if params.variant == "B" else None,
        recent=params.recent,
        rests=params.pipeline == "sequential",
    )
    return PruningAware(model, architecture, target, removing)

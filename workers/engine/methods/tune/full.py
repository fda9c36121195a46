"""Full: trains every weight that is left, on text, with AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.architectures.mixtures import is_router
from workers.engine.contracts.tuning_params import AllOrNewParams, LearningRate, Moments
from workers.engine.errors import InvalidSpec
from workers.engine.registry import tuner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture, LinearFacts
    from workers.engine.contracts.facts import Trainable
    from workers.engine.contracts.tuning_params import DescribedModel


class FullParams(AllOrNewParams):
    """Train every weight."""

    method: Literal["full"] = Field("full", description="Train every weight: the most memory, and the most room.")
    learning_rate: LearningRate = 3e-4
    train: Literal["all", "new_blocks", "routers"] = Field(  # type: ignore[assignment]  # one choice more
        "all",
        description="Of a grown model, train everything, or the added blocks alone (`new_blocks`), as LESA's and "
        "LLaMA-Pro's authors do; of a mixture, its routers alone (`routers`): after experts were dropped they learn, "
        "with `distill`, which of those left stand in for them.",
    )
    moments: Moments = "float32"

    @property
    def eight_bit(self) -> bool:
        return self.moments == "8bit"

    @property
    def trains_own(self) -> bool:
        return True

    def masked_weights(self, architecture: Architecture) -> int:
        return sum(layer.parameters for layer in architecture.layers if self.trains(architecture, layer.weight))

    @property
    def trains_all(self) -> bool:
        return self.train == "all"

    def check(self, layers: Sequence[LinearFacts]) -> None:
        super().check(layers)
        if self.train == "routers" and all(layer.reads != "expert_channel" for layer in layers):
            raise InvalidSpec("the model has no experts, so no routers to train", "train `all`", field="/tune/train")

    def trains(self, architecture: Architecture, name: str) -> bool:
        if self.train == "routers":
            return is_router(architecture, name)
        return super().trains(architecture, name)

    def trains_tensor(self, architecture: Architecture, name: str, *, tied: bool) -> bool:
        return self.trains(architecture, name)

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        if self.train != "all":
            return sum(f.parameters for name, f in source.tensors.items() if self.trains(architecture, name))
        return source.parameters


@tuner(FullParams, paper="arXiv:1711.05101")
def prepare(model: Module, architecture: Architecture, params: FullParams) -> Trainable:
    """All parameters, embeddings and norms included; a tied head trains with its embedding. Zeros stay."""
    from workers.engine.training.trainable import unfrozen

    return unfrozen(model, architecture, lambda name: params.trains(architecture, name))

"""Last layers: trains the head, the final norm and the last blocks, nothing else (Lu et al. 2024, arXiv:2411.15558)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.tuning_params import LearningRate, Moments, TuneMethodParams
from workers.engine.errors import InvalidSpec
from workers.engine.registry import tuner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture, LinearFacts
    from workers.engine.contracts.facts import Trainable
    from workers.engine.contracts.tuning_params import DescribedModel


class LastLayersParams(TuneMethodParams):
    """Train the end of the model."""

    method: Literal["last_layers"] = Field(
        "last_layers", description="Train the head, the final norm and the last blocks: no gradient goes further down."
    )
    blocks: int = Field(3, ge=0, le=1024, description="How many of the last blocks to train.")
    tied_head: Literal["frozen", "joint"] = Field(
        "frozen",
        description="A head that is tied to the input embedding is left as it is, or trained with it (`joint`): then "
        "gradients go through the whole model. Untied heads are trained. Untying one would make the model larger.",
    )
    learning_rate: LearningRate = 3e-4
    moments: Moments = "float32"

    @property
    def eight_bit(self) -> bool:
        return self.moments == "8bit"

    @property
    def trains_own(self) -> bool:
        return True

    def masked_weights(self, architecture: Architecture) -> int:
        first = architecture.blocks - self.blocks
        return sum(layer.parameters for layer in architecture.layers if layer.block >= first)

    def check(self, layers: Sequence[LinearFacts]) -> None:
        found = len({layer.block for layer in layers})
        if self.blocks > found:
            raise InvalidSpec(
                f"the model has {found} blocks, not {self.blocks} to train", "lower `blocks`", field="/tune/blocks"
            )

    def warnings(self, source: DescribedModel) -> list[str]:
        if self.tied_head == "joint" or not source.shares_head:
            return []
        return ["the output head is tied to the input embedding and is not tuned: `tied_head` says `frozen`"]

    def blocks_back(self, source: DescribedModel, architecture: Architecture) -> int:
        through = self.tied_head == "joint" and source.shares_head
        return architecture.blocks if through else self.blocks

    def trains_tensor(self, architecture: Architecture, name: str, *, tied: bool) -> bool:
        return name.startswith(_trained(architecture, self, tied=tied))

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        tied = source.shares_head
        trained = _trained(architecture, self, tied=tied)
        return sum(facts.parameters for name, facts in source.tensors.items() if name.startswith(trained))


@tuner(LastLayersParams, paper="arXiv:2411.15558")
def prepare(model: Module, architecture: Architecture, params: LastLayersParams) -> Trainable:
    """Everything of the last blocks, the final norm, and the head. Zeros stay.

    The norm as in the paper's code; its text does not mention it.
    """
    from workers.engine.training.trainable import has_tied_head, unfrozen

    params.check(architecture.layers)  # a depth-pruned result has fewer blocks
    tied = has_tied_head(model, architecture)
    return unfrozen(model, architecture, lambda name: params.trains_tensor(architecture, name, tied=tied))


def _trained(architecture: Architecture, params: LastLayersParams, *, tied: bool) -> tuple[str, ...]:
    """Prefixes of the names of trained parameters. A tied head has the embedding's name."""
    layout, blocks = architecture.layout, range(architecture.blocks)
    last = tuple(f"{layout.block(block)}." for block in blocks[len(blocks) - params.blocks :])
    ending = tuple(path for path in (layout.final_norm, *layout.after) if path)
    if not tied:
        return (*last, *ending, layout.head)
    joint = params.tied_head == "joint"
    return (*last, *ending, layout.embedding) if joint else (*last, *ending)

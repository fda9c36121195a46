"""Last layers: trains the head, the final norm and the last blocks, nothing else (Lu et al. 2024, arXiv:2411.15558)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.registry import tuner
from workers.engine.tuning.params import LearningRate, TuneMethodParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.nn import Module

    from workers.engine.architectures.llama import Architecture
    from workers.engine.sources import ModelSource
    from workers.engine.stats import LinearFacts
    from workers.engine.tuning.trainable import Trainable


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
    learning_rate: LearningRate = 1e-4

    def check(self, layers: Sequence[LinearFacts]) -> None:
        from workers.engine.errors import InvalidSpec

        found = len({layer.block for layer in layers})
        if self.blocks > found:
            raise InvalidSpec(
                f"the model has {found} blocks, not {self.blocks} to train", "lower `blocks`", field="/tune/blocks"
            )

    def warnings(self, source: ModelSource) -> list[str]:
        if self.tied_head == "joint" or not source.config.get("tie_word_embeddings"):
            return []
        return ["the output head is tied to the input embedding and is not tuned: `tied_head` says `frozen`"]

    def trained_parameters(self, source: ModelSource, architecture: Architecture) -> int:
        tied = bool(source.config.get("tie_word_embeddings"))
        head = 0 if tied and self.tied_head == "frozen" else architecture.vocabulary * architecture.hidden_size
        first = architecture.blocks - self.blocks
        return head + architecture.hidden_size + sum(x.parameters for x in architecture.layers if x.block >= first)


@tuner(LastLayersParams, paper="arXiv:2411.15558")
def prepare(model: Module, params: LastLayersParams) -> Trainable:
    """Everything of the last blocks, the final norm, and the head. Zeros stay.

    The norm as in the paper's code; its text does not mention it.
    """
    from workers.engine.architectures.llama import BLOCKS, EMBEDDING, FINAL_NORM, HEAD
    from workers.engine.tuning.trainable import facts_of, linears, unfrozen

    layers = facts_of(linears(model))
    params.check(layers)  # a depth-pruned result has fewer blocks
    blocks = sorted({layer.block for layer in layers})
    trained = [f"{BLOCKS}.{block}." for block in blocks[len(blocks) - params.blocks :]]
    trained += [f"{FINAL_NORM}.", f"{HEAD}."]
    if params.tied_head == "joint" and f"{HEAD}.weight" not in dict(model.named_parameters()):
        trained.append(f"{EMBEDDING}.")
    return unfrozen(model, lambda name: name.startswith(tuple(trained)))

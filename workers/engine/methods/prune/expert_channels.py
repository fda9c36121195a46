"""Expert channels: makes all experts of a mixture narrower, each by the channels that count least in it.

Width pruning of experts as in Minitron (Muralidharan et al. 2024, arXiv:2407.14679), which ranks the channels of an MLP
and cuts all blocks to one width; here within each expert alone. Coupled slices go together as in LLM-Pruner
(arXiv:2305.11627), and what an expert loses is made up for by least squares, as in `structured`.
O = outputs, I = inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import AtMost, Stat
from workers.engine.errors import InvalidSpec
from workers.engine.removals.expert_channels import ALIGNED, ExpertWidthParams, expert_width_pruner

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.facts import LayerTask, LinearStats


class ExpertChannelsParams(ExpertWidthParams):
    """Cut the lowest-scored channels of every expert."""

    number = "channels"
    method: Literal["expert_channels"] = Field("expert_channels", description="Cut channels out of every expert.")
    channels: int | None = Field(
        None, ge=1, le=1_048_576, description="How many channels of each expert stay, a multiple of 8.", examples=[512]
    )
    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Instead of `channels`: the fraction of them that goes, to the nearest `channel_multiple`.",
        examples=[0.25],
    )
    at_most: AtMost | None = Field(
        None,
        description="Instead of `channels`: the size the result must fit into. As many channels stay as do, a multiple "
        "of `channel_multiple`.",
    )
    shared_channels: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="How many channels stay of the MLP of all tokens beside the experts, where the model's config says "
        "its width apart from theirs. Left out, it keeps the same share as they do.",
    )
    channel_multiple: int = Field(
        ALIGNED,
        ge=ALIGNED,
        le=1024,
        multiple_of=ALIGNED,
        description="What a share keeps is a multiple of this. Grouped products take no other than of 8; GPUs like 64 "
        "or 128.",
    )
    compensate: bool = Field(
        True,
        description="Have the layers that read channels make up for lost ones, by least squares on the tokens that are "
        "sent to each expert. An expert of fewer than 32 tokens is only cut.",
    )
    dampening: float = Field(
        0.01, gt=0, le=1, description="Added to the diagonal of the inputs' Gram matrix, as a fraction of its mean."
    )

    @model_validator(mode="after")
    def _one_target(self) -> ExpertChannelsParams:
        if sum(given is not None for given in (self.channels, self.sparsity, self.at_most)) != 1:
            raise PydanticCustomError(
                "one_target", "give one of `channels`, how many stay, `sparsity` and `at_most`, the size to fit into"
            )
        return self

    @property
    def target(self) -> float | None:
        return None

    @property
    def waives(self) -> Stat:
        return Stat.NONE if self.compensate else Stat.GRAM

    @property
    def multiple(self) -> int:
        return self.channel_multiple

    def kept(self, channels: int) -> int:
        return self.channels if self.channels is not None else self._rounded(channels, 1 - (self.sparsity or 0.0))

    def kept_shared(self, channels: int, kept: int, of: int) -> int:
        if self.shared_channels is not None:
            return self.shared_channels
        # A multiple of an expert's width may follow from it.
        return channels // of * kept if channels % of == 0 else self._rounded(channels, kept / of)

    def _rounded(self, channels: int, share: float) -> int:
        if share == 1:
            return channels
        kept = round(channels * share / self.channel_multiple) * self.channel_multiple
        if not 0 < kept <= channels:
            raise InvalidSpec(
                f"of {channels} channels {kept}, the nearest multiple of {self.channel_multiple}, cannot stay",
                "lower channel_multiple, or the sparsity",
                field="/prune/channel_multiple",
            )
        return kept


@expert_width_pruner(ExpertChannelsParams, paper="arXiv:2407.14679", needs=Stat.GRAM)
def prune(reader: LayerTask, kept_I: Tensor, stats: LinearStats, params: ExpertChannelsParams) -> Tensor:
    """The reader's weight [O, I], float32, zero in the inputs that go.

    With `compensate` its weights of the least mean squared output error over all weights of the inputs that stay.
    Raises NumericalFailure if the statistics cannot be factorized.
    """
    from workers.engine.maths.second_order import cut_inputs

    gram_II = needed(stats.gram_II, "Stat.GRAM") if params.compensate else None
    return cut_inputs(reader, kept_I, gram_II, params.dampening)

"""Group: trains one offset per group of a quantised layer's weights, at low rank (Xu et al. 2023, arXiv:2309.14717).

The tuning of SAAP (arXiv:2412.15127), whose mathematics are QA-LoRA's: the adapter merges exactly into the groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.tuning_params import LearningRate, TuneMethodParams
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.registry import tuner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor
    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture, LinearFacts
    from workers.engine.contracts.facts import Trainable
    from workers.engine.contracts.tuning_params import DescribedModel


class GroupParams(TuneMethodParams):
    """Quantise the linear layers by groups of inputs and train the groups' offsets."""

    method: Literal["group"] = Field(
        "group",
        description="Quantise by groups, train the groups' offsets: the least memory. The result is stored dense, in "
        "the values that the codes stand for.",
    )
    bits: int = Field(
        4, ge=2, le=16, description="Bits of a weight's code: 2, 4 or 8, held as such; 16 quantises nothing."
    )
    group_size: int = Field(
        32, ge=8, le=1024, multiple_of=8, description="Consecutive inputs that share an offset; divides every width."
    )
    rank: int = Field(8, ge=1, le=1024, description="Of the matrix of offsets, outputs by groups.")
    alpha: float = Field(16.0, gt=0, le=4096, description="The adapter counts alpha / rank times, as in LoRA.")
    learning_rate: LearningRate = 3e-3

    @model_validator(mode="after")
    def _bits_that_pack(self) -> GroupParams:
        if self.bits not in (2, 4, 8, 16):
            raise PydanticCustomError(
                "no_such_bits", "`bits` is 2, 4, 8, or 16 to quantise nothing, not {bits}", {"bits": self.bits}
            )
        return self

    @property
    def base_bits(self) -> float | None:
        if self.bits == 16:
            return None
        return self.bits + 1 + 64 / self.group_size  # a code, a mask's bit, two float32 a group

    def check(self, layers: Sequence[LinearFacts]) -> None:
        for layer in layers:
            if layer.shape[1] % self.group_size:
                raise InvalidSpec(
                    f"{layer.name}: groups of {self.group_size} do not divide its {layer.shape[1]} inputs",
                    "choose a `group_size` that divides every width, or a `channel_multiple` that it divides",
                    field="/tune/group_size",
                )

    @property
    def adds_to_experts(self) -> bool:
        return True

    @property
    def block_by_block(self) -> bool:
        return True

    @property
    def begins_unchanged(self) -> bool:
        return self.base_bits is None

    def check_held(self, architecture: Architecture) -> None:
        """Codes are of whole matrices [O, I], each in a module of its own, or of all experts' in one."""
        for layer in architecture.layers:
            if architecture.layout.matrix(layer) and not architecture.layout.of_experts(layer):
                raise UnsupportedModel(
                    f"{layer.name} is held in one tensor with others, or transposed, here: its groups cannot be tuned "
                    "alone",
                    "tune with `lora`, `full` or `last_layers`",
                    field="/tune/method",
                )

    def check_multiples(self, channels: int) -> None:
        if channels % self.group_size:
            raise InvalidSpec(
                f"groups of {self.group_size} need not divide the widths that the job will choose",
                f"set `channel_multiple` to {self.group_size}, the `group_size`, or a multiple of it",
                field="/prune/channel_multiple",
            )

    def warnings(self, source: DescribedModel) -> list[str]:
        if self.base_bits is None:
            return []
        return [
            f"the linear layers' weights end up with at most {2**self.bits} values a group, stored in the usual type: "
            "the files are no smaller until they are packed"
        ]

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        return sum(self.rank * (o + i // self.group_size) for _, (o, i) in architecture.matrices())


@tuner(GroupParams, paper="arXiv:2309.14717")
def prepare(
    model: Module, architecture: Architecture, params: GroupParams, blocks: Iterable[int] | None = None
) -> Trainable:
    """The offsets' two factors, of every linear layer of the blocks. Zeros belong to no group and stay."""
    from torch.nn import Linear

    from workers.engine.contracts.facts import Trainable
    from workers.engine.model.views import held
    from workers.engine.training.group_experts import GroupExperts
    from workers.engine.training.groups import replaced
    from workers.engine.training.put_in import put_in, trained_of
    from workers.engine.training.trainable import experts, linears, pruned

    params.check_held(architecture)
    places, stacked = held(model, architecture), experts(model, architecture)
    found = [*linears(model, architecture, (Linear,))]
    params.check(architecture.layers)  # a structured result's widths are known only now
    model.requires_grad_(False)
    group = {name: getattr(params, name) for name in ("bits", "group_size", "rank", "alpha")}
    masked = {architecture.layout.host(layer.name) for layer in pruned(architecture)}
    layers, mixtures = put_in(
        model,
        architecture,
        found,
        stacked,
        blocks,
        lambda here: replaced(model, here, masked, **group),
        lambda path: GroupExperts(model.get_submodule(path), stacked[path], masked=path in masked, **group),
    )
    parameters = {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("a_RG", "b_OR")}
    parameters |= trained_of(mixtures)

    hosts = {facts.weight: architecture.layout.host(facts.name) for facts in architecture.layers}

    def merged(name: str, stored: Tensor) -> Tensor:
        host = hosts.get(name)
        if host in layers:
            return layers[host].merged(stored)
        return mixtures[host].merged(places[name], stored) if host in mixtures else stored

    return Trainable(parameters, merged)

"""SPP: trains factors that multiply the weights left, so that zeros stay zeros (Lu et al. 2024, arXiv:2405.16057).

Defaults are the code's: rank, scale, rate and decay. Departures: no dropout, which acts on a copy of the inputs that
the product with the multiplied weight does not have; the warm-up is that of all tuners here, a twentieth of the steps
for 0.03; a rank need not divide the outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.tuning_params import LearningRate, TuneMethodParams
from workers.engine.registry import tuner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Trainable
    from workers.engine.contracts.tuning_params import DescribedModel


class SppParams(TuneMethodParams):
    """Train factors of the weights of every linear layer of the blocks."""

    method: Literal["spp"] = Field(
        "spp",
        description="Train factors that multiply the weights left: few parameters, and zeros stay by themselves. "
        "Weights near zero hardly move.",
    )
    rank: int = Field(
        16, ge=1, le=4096, description="Bands of outputs that share their factors over the inputs; at most all outputs."
    )
    scale: float = Field(2.0, gt=0, le=4096, description="How often the product of the factors counts (gamma).")
    learning_rate: LearningRate = 4e-3
    weight_decay: float = Field(0.001, ge=0, le=1, description="AdamW's, of the factors.")

    @property
    def adds_to_experts(self) -> bool:
        return True

    @property
    def block_by_block(self) -> bool:
        return True

    @property
    def begins_unchanged(self) -> bool:
        return True

    @property
    def multiplies(self) -> bool:
        return True

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        return sum(min(self.rank, o) * i + o for _, (o, i) in architecture.matrices())


@tuner(SppParams, paper="arXiv:2405.16057")
def prepare(
    model: Module, architecture: Architecture, params: SppParams, blocks: Iterable[int] | None = None
) -> Trainable:
    """The two factors of every matrix of the blocks, of each expert's own."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from workers.engine.contracts.facts import Trainable
    from workers.engine.model.views import held
    from workers.engine.training.multiplied import MultipliedExperts, multiplied
    from workers.engine.training.put_in import put_in, trained_of
    from workers.engine.training.trainable import experts, linears

    places, rank, scale = held(model, architecture), params.rank, params.scale
    stacked = experts(model, architecture)
    found = [*linears(model, architecture, (nn.Linear, Conv1D))]
    model.requires_grad_(False)
    layers, mixtures = put_in(
        model,
        architecture,
        found,
        stacked,
        blocks,
        lambda here: multiplied(model, here, rank=rank, scale=scale),
        lambda path: MultipliedExperts(model.get_submodule(path), stacked[path], rank=rank, scale=scale),
    )
    hosts = {facts.weight: architecture.layout.host(facts.name) for facts in architecture.layers}
    parameters = {f"{path}.{part}": getattr(layer, part) for path, layer in layers.items() for part in ("a_RI", "b_O")}
    parameters |= trained_of(mixtures)

    def merged(name: str, stored: Tensor) -> Tensor:
        host = hosts.get(name)
        if host in layers:
            return stored * places[name].read(layers[host].held_factor())
        if host in mixtures and (place := places[name].place) is not None and place.expert is not None:
            factor_PQ = mixtures[host].held_factor(places[name].parameter.rpartition(".")[2], place.expert)
            return stored * replace(place, expert=None).read(factor_PQ)
        return stored

    return Trainable(parameters, merged)

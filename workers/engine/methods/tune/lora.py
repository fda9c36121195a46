"""LoRA: trains a low-rank update of every linear layer, merged in at the end (Hu et al. 2021, arXiv:2106.09685).

The recovery of LLM-Pruner (arXiv:2305.11627) and Shortened LLaMA (arXiv:2402.02834), with their rank, alpha, dropout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.tuning_params import AllOrNewParams, LearningRate
from workers.engine.registry import tuner

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Trainable
    from workers.engine.contracts.tuning_params import DescribedModel


class LoraParams(AllOrNewParams):
    """Train a low-rank update of every linear layer of the blocks."""

    method: Literal["lora"] = Field("lora", description="Train a low-rank update of every linear layer, then merge it.")
    rank: int = Field(8, ge=1, le=1024, description="Of the update; at most a layer's smaller side makes sense.")
    alpha: float = Field(16.0, gt=0, le=4096, description="The update counts alpha / rank times.")
    dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the adapters' inputs that a step leaves out; those "
        "of experts' matrices are never left out, as the update is added to the weights.",
    )
    learning_rate: LearningRate = 3e-4

    @property
    def input_copies(self) -> int:
        return 2 if self.dropout else 0  # what dropout left, and what it multiplied by

    @property
    def adds_to_experts(self) -> bool:
        return True

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        return sum(self.rank * sum(shape) for path, shape in architecture.matrices() if self.trains(architecture, path))


@tuner(LoraParams, paper="arXiv:2106.09685")
def prepare(model: Module, architecture: Architecture, params: LoraParams) -> Trainable:
    """The adapters' two factors, for each matrix of an expert too. The update of a masked layer is masked."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from workers.engine.contracts.facts import Trainable
    from workers.engine.model.views import held
    from workers.engine.training.experts_lora import ExpertsLora
    from workers.engine.training.masked_lora import ADAPTER, injected
    from workers.engine.training.trainable import experts, linears

    layout, places = architecture.layout, held(model, architecture)
    stacked = {p: found for p, found in experts(model, architecture).items() if params.trains(architecture, p)}
    paths = [path for path in linears(model, architecture, (nn.Linear, Conv1D)) if params.trains(architecture, path)]
    layers = injected(
        model,
        paths,
        rank=params.rank,
        alpha=params.alpha,
        dropout=params.dropout,
        unmasked=[path for path in paths if architecture.is_new(path)],
    )
    mixtures = {
        path: ExpertsLora(
            model.get_submodule(path),
            transposed,
            rank=params.rank,
            alpha=params.alpha,
            masked=not architecture.is_new(path),
        )
        for path, transposed in stacked.items()
    }
    for path, mixture in mixtures.items():
        model.set_submodule(path, mixture)
    hosts = {facts.weight: layout.host(facts.name) for facts in architecture.layers}
    parameters = {
        f"{name}.{part}": getattr(layer, part)[ADAPTER].weight
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }
    for path, mixture in mixtures.items():
        parameters |= {f"{path}.{name}": parameter for name, parameter in mixture.factors().items()}

    def merged(name: str, stored: Tensor) -> Tensor:
        host = hosts.get(name)
        if host in layers:
            return stored + places[name].read(layers[host].get_delta_weight(ADAPTER).detach())
        if host in mixtures and (place := places[name].place) is not None and place.expert is not None:
            delta_PQ = mixtures[host].update(places[name].parameter.rpartition(".")[2], place.expert)
            return stored + replace(place, expert=None).read(delta_PQ)
        return stored

    return Trainable(parameters, merged)

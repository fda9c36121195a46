"""LoRA: trains a low-rank update of every linear layer, merged in at the end (Hu et al. 2021, arXiv:2106.09685).

The recovery of LLM-Pruner (arXiv:2305.11627) and Shortened LLaMA (arXiv:2402.02834), with their rank, alpha, dropout.
"""

from __future__ import annotations

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
    dropout: float = Field(0.05, ge=0, lt=1, description="Share of the adapters' inputs that a step leaves out.")
    learning_rate: LearningRate = 3e-4

    @property
    def input_copies(self) -> int:
        return 2 if self.dropout else 0  # what dropout left, and what it multiplied by

    def trained_parameters(self, source: DescribedModel, architecture: Architecture) -> int:
        return sum(
            self.rank * sum(shape) for path, shape in architecture.modules().items() if self.trains(architecture, path)
        )


@tuner(LoraParams, paper="arXiv:2106.09685")
def prepare(model: Module, architecture: Architecture, params: LoraParams) -> Trainable:
    """The adapters' two factors. The update of a masked layer is masked."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from workers.engine.contracts.facts import Trainable
    from workers.engine.model.views import held
    from workers.engine.training.masked_lora import ADAPTER, injected
    from workers.engine.training.trainable import linears

    layout, places = architecture.layout, held(model, architecture)
    paths = [path for path in linears(model, architecture, (nn.Linear, Conv1D)) if params.trains(architecture, path)]
    layers = injected(
        model,
        paths,
        rank=params.rank,
        alpha=params.alpha,
        dropout=params.dropout,
        unmasked=[path for path in paths if architecture.is_new(path)],
    )
    by_weight = {
        facts.weight: layers[path] for facts in architecture.layers if (path := layout.host(facts.name)) in layers
    }
    parameters = {
        f"{name}.{part}": getattr(layer, part)[ADAPTER].weight
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }

    def merged(name: str, stored: Tensor) -> Tensor:
        layer = by_weight.get(name)
        return stored if layer is None else stored + places[name].read(layer.get_delta_weight(ADAPTER).detach())

    return Trainable(parameters, merged)

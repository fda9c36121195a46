"""LoRA on linear layers of the blocks, experts' matrices among them, merged at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from workers.engine.contracts.facts import Trainable
from workers.engine.model.views import held
from workers.engine.training.experts_lora import ExpertsLora
from workers.engine.training.masked_lora import ADAPTER, injected
from workers.engine.training.trainable import experts, linears

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture


def low_rank(
    model: nn.Module,
    architecture: Architecture,
    trained: Callable[[str], bool],
    *,
    rank: int,
    alpha: float,
    dropout: float,
) -> Trainable:
    """The adapters' two factors, for each matrix whose module's path `trained` picks, and for each matrix of an expert.
    Everything else is frozen. The update of a masked layer is masked."""
    layout, places = architecture.layout, held(model, architecture)
    stacked = {path: found for path, found in experts(model, architecture).items() if trained(path)}
    paths = [path for path in linears(model, architecture, (nn.Linear, Conv1D)) if trained(path)]
    model.requires_grad_(False)
    unmasked = [path for path in paths if architecture.is_new(path)]
    layers = injected(model, paths, rank=rank, alpha=alpha, dropout=dropout, unmasked=unmasked) if paths else {}
    mixtures = {
        path: ExpertsLora(
            model.get_submodule(path), transposed, rank=rank, alpha=alpha, masked=not architecture.is_new(path)
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

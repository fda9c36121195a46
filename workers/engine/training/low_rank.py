"""LoRA on linear layers of the blocks, experts' matrices among them, merged at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from workers.engine.contracts.facts import Trainable
from workers.engine.model.views import held
from workers.engine.training.experts_lora import ExpertsLora
from workers.engine.training.masked_lora import ADAPTER, MaskedLora, injected
from workers.engine.training.put_in import put_in, trained_of
from workers.engine.training.trainable import experts, linears

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
    blocks: Iterable[int] | None = None,
) -> Trainable:
    """The adapters' two factors, for each matrix whose module's path `trained` picks, and for each matrix of an expert.
    Everything else is frozen. The update of a masked layer is masked. `blocks`: as a tuner gets them.
    """
    layout, places = architecture.layout, held(model, architecture)
    stacked = {path: found for path, found in experts(model, architecture).items() if trained(path)}
    paths = [path for path in linears(model, architecture, (nn.Linear, Conv1D)) if trained(path)]
    model.requires_grad_(False)

    def layers_of(here: list[str]) -> dict[str, MaskedLora]:
        unmasked = [path for path in here if architecture.is_new(path)]
        return injected(model, here, rank=rank, alpha=alpha, dropout=dropout, unmasked=unmasked) if here else {}

    def mixture_of(path: str) -> ExpertsLora:
        masked = not architecture.is_new(path)
        return ExpertsLora(model.get_submodule(path), stacked[path], rank=rank, alpha=alpha, masked=masked)

    layers, mixtures = put_in(model, architecture, paths, stacked, blocks, layers_of, mixture_of)
    hosts = {facts.weight: layout.host(facts.name) for facts in architecture.layers}
    parameters = {
        f"{name}.{part}": getattr(layer, part)[ADAPTER].weight
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }
    parameters |= trained_of(mixtures)

    def merged(name: str, stored: Tensor) -> Tensor:
        host = hosts.get(name)
        if host in layers:
            return stored + places[name].read(layers[host].get_delta_weight(ADAPTER).detach())
        if host in mixtures and (place := places[name].place) is not None and place.expert is not None:
            delta_PQ = mixtures[host].update(places[name].parameter.rpartition(".")[2], place.expert)
            return stored + replace(place, expert=None).read(delta_PQ)
        return stored

    return Trainable(parameters, merged)

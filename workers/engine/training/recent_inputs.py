"""Sums over the inputs that layers read in the forward passes of a step. I = inputs, N = tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from workers.engine.architectures.architecture import Architecture, Family


def gram(inputs_NI: Tensor) -> Tensor:
    """Sum of x x^T, [I, I]."""
    return inputs_NI.T @ inputs_NI


def squares(inputs_NI: Tensor) -> Tensor:
    """Sum of x^2, [I]."""
    return inputs_NI.square().sum(dim=0)


class RecentInputs:
    """Records between `record` and `stop`, of the layers that read families' units, `summed` inputs."""

    def __init__(self, model: nn.Module, architecture: Architecture, summed: Callable[[Tensor], Tensor]) -> None:
        self._model, self._layout, self._summed = model, architecture.layout, summed
        self._handles: list[RemovableHandle] = []
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def record(self, families: Sequence[Family]) -> None:
        """Record the inputs of their readers from now on, after masks that were put on them before."""
        for family in families:
            name = family.reader.tensor
            reader = self._model.get_submodule(self._layout.host(name.removesuffix(".weight")))
            self._handles.append(reader.register_forward_pre_hook(partial(self._add, name)))

    def stop(self) -> None:
        """Forget what was recorded, and take the hooks off."""
        while self._handles:
            self._handles.pop().remove()
        self._sums, self._tokens = {}, {}

    def mean(self, family: Family) -> Tensor:
        """The sum over the tokens recorded divided by their number, float32."""
        name = family.reader.tensor
        return self._sums[name] / self._tokens[name]

    @torch.no_grad()
    def _add(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs_NI = args[0].detach().flatten(0, -2).float()
        with torch.autocast(inputs_NI.device.type, enabled=False):
            found = self._summed(inputs_NI)
        self._sums[name] = self._sums[name].add_(found) if name in self._sums else found
        self._tokens[name] = self._tokens.get(name, 0) + len(inputs_NI)

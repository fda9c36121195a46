"""Gram matrices of the inputs that layers read in the forward passes of a step. I = inputs, N = tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from workers.engine.architectures.architecture import Architecture, Family


class RecentInputs:
    """Records them between `record` and `stop`, of the layers that read families' units."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self._model, self._layout = model, architecture.layout
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

    def gram(self, family: Family) -> Tensor:
        """[I, I], float32: the mean of x x^T over the tokens recorded, as its reader reads them."""
        name = family.reader.tensor
        return self._sums[name] / self._tokens[name]

    @torch.no_grad()
    def _add(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs_NI = args[0].detach().flatten(0, -2).float()
        with torch.autocast(inputs_NI.device.type, enabled=False):
            gram_II = inputs_NI.T @ inputs_NI
        self._sums[name] = self._sums[name].add_(gram_II) if name in self._sums else gram_II
        self._tokens[name] = self._tokens.get(name, 0) + len(inputs_NI)

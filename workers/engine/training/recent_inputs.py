"""Sums over the inputs that layers read in forward passes. I = inputs, N = tokens.

Where the model is divided over ranks each adds its own inputs, times the number of ranks, and what all have then is
averaged: so the sums are whole on each, and a resume point holds them once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.training.group_slices import GroupSlices
from workers.engine.training.shards import mean_over, sharing

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
    """Of the layers that read families' units: what is `summed` of the inputs, while it records."""

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        families: Sequence[Family],
        summed: Callable[[Tensor], Tensor],
    ) -> None:
        self._summed = summed
        self._readers: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self._ranks = sharing(next(model.parameters()))
        self.sums: dict[str, Tensor] = {}
        """Tensor of the reader -> the sum, float32, written in place."""
        self.tokens: dict[str, Tensor] = {}
        """The same -> how many tokens it is over, float64 scalar."""
        self._weights: dict[str, nn.Parameter] = {}
        self._step: int | None = None
        self._passes: dict[str, int] = {}
        """Reader -> passes through it since the step last began."""
        self._added: dict[str, int] = {}
        """The same -> how many passes of the step are in its sum."""
        slices = GroupSlices(model, architecture)
        for family in families:
            name = family.reader.tensor
            self._weights[name] = slices.parameter(family.reader)
            weight_OI = slices.read(family.reader, lambda parameter: parameter.data)
            self._readers[name] = model.get_submodule(architecture.layout.host(name.rpartition(".")[0]))
            self.sums[name] = summed(torch.zeros(0, weight_OI.shape[1], device=weight_OI.device))
            self.tokens[name] = torch.zeros((), dtype=torch.float64)

    def record(self, step: int) -> None:
        """Add what is read from now on, after masks that were put on the readers before. Of a step that begins again,
        passes that were added before are not added once more."""
        self._release()
        if step != self._step:
            self._step, self._added = step, {}
        self._passes = {}
        for name, reader in self._readers.items():
            self._handles.append(reader.register_forward_pre_hook(partial(self._add, name)))

    def stop(self) -> None:
        """Add nothing more; what was added is of all ranks then."""
        if self._handles:
            self._release()
            for name, total in self.sums.items():
                mean_over(self._weights[name], total)

    def clear(self) -> None:
        """Forget all inputs."""
        for total in (*self.sums.values(), *self.tokens.values()):
            total.zero_()

    def mean(self, family: Family) -> Tensor:
        """The sum divided by the number of tokens, float32."""
        name = family.reader.tensor
        return self.sums[name] / float(self.tokens[name])

    def _release(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    @torch.no_grad()
    def _add(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._passes[name] = self._passes.get(name, 0) + 1
        if self._passes[name] <= self._added.get(name, 0):
            return
        self._added[name] = self._passes[name]
        inputs_NI = args[0].detach().flatten(0, -2).float()
        with torch.autocast(inputs_NI.device.type, enabled=False):
            self.sums[name].add_(self._summed(inputs_NI), alpha=self._ranks)
        self.tokens[name] += len(inputs_NI) * self._ranks  # each has as many windows

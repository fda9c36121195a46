"""Factors on the units of a model, applied where a layer reads them: what it computes without those whose factor is 0.

A unit's values are an interval of the reader's inputs, one interval after the other. A layer's factor multiplies what
its block adds to the hidden states. U = units of a family.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Architecture, Family, Kind


class UnitMasks:
    """Masks of families on a model, until `remove`.

    Modules that wrap a reader (adapters) must be in place before: the hook lies on what computes the whole layer.
    """

    def __init__(self, model: nn.Module, architecture: Architecture, families: Sequence[Family]) -> None:
        """All factors are one. Readers are modules of their own in all layouts."""
        self.values: dict[tuple[int, Kind], Tensor] = {}
        """(block, kind) -> factor of each unit, [U]. Written in place or replaced, between forward passes; one that
        requires gradients gets them. It is read in the type of the layer's inputs."""
        self._handles = []
        layout = architecture.layout
        for family in families:
            key = (family.block, family.kind)
            if family.is_block:
                block = model.get_submodule(layout.in_module(layout.block(family.block)))
                self.values[key] = torch.ones(1, device=next(block.parameters()).device)
                self._handles.append(block.register_forward_hook(partial(self._added, key), with_kwargs=True))
                continue
            reader = model.get_submodule(layout.host(family.reader.tensor.rpartition(".")[0]))
            self.values[key] = torch.ones(family.units, device=next(reader.parameters()).device)
            self._handles.append(reader.register_forward_pre_hook(partial(self._read, key)))

    def remove(self) -> None:
        """Take the hooks off the model."""
        while self._handles:
            self._handles.pop().remove()

    def _read(self, key: tuple[int, Kind], module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The reader's arguments, of which the first, its inputs [..., I], are multiplied by their units' factors."""
        inputs, *others = args
        factors_U = self.values[key].to(inputs.dtype)
        factors_I = factors_U.repeat_interleave(inputs.shape[-1] // len(factors_U))
        return (inputs * factors_I, *others)

    def _added(
        self, key: tuple[int, Kind], module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Any:
        """The block's output, hidden states [..., D] or a tuple or list that begins with them."""
        several = isinstance(output, tuple | list)
        hidden, *others = output if several else (output,)
        before = args[0] if args else named["hidden_states"]
        factor = self.values[key].to(hidden.dtype)
        hidden = hidden * factor + before * (1 - factor)
        return type(output)((hidden, *others)) if several else hidden

"""Gates on the units of a model: what each unit gives is multiplied by a number in [0, 1], whose chance of being 0 is
learnt.

A unit that one layer reads, a head or a channel, is gated where that layer reads it, and a decoder block by what it
adds. Gates of hidden dimensions multiply what the embedding and the blocks write into them, and norms then divide by
the root mean square of the dimensions that are open (Xia et al. 2023, arXiv:2310.06694). N = units of a row, K of D =
hidden dimensions that are open.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workers.engine.maths import hard_concrete
from workers.engine.training.decided import row_of, rows_of, units_of
from workers.engine.training.unit_masks import UnitMasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture, Family
    from workers.engine.training.decided import Row

_START, _SPREAD = math.log(99), 0.01
"""Mean and standard deviation of alpha at the start, a chance of 0.2 % to be closed: of channels in Compresso's code;
the larger means of other kinds there are clamped to about this after the first step."""
_HIDDEN, _LAYER = (None, "hidden"), (None, "layer")
_ONE_OR_NONE: tuple[Row, ...] = (_HIDDEN, _LAYER)
"""Rows whose gates are 0 or 1 in the end."""


class Gates:
    """The gates of some families, in force whenever the model computes. Until the first `draw` all are 1."""

    def __init__(self, model: nn.Module, architecture: Architecture, families: Sequence[Family]) -> None:
        """Put them on the model. Random numbers are torch's own."""
        self.rows, self._layout = rows_of(families), architecture.layout
        device = next(model.parameters()).device
        self.alphas = {
            row: nn.Parameter(torch.empty(units_of(of_row)).normal_(_START, _SPREAD).to(device))
            for row, of_row in self.rows.items()
        }
        self._noise: dict[Row, Tensor] = {}
        self._settled: Mapping[Row, Tensor] = {}
        self._values: dict[Row, Tensor] = {}
        model.register_forward_pre_hook(self._set)
        self._masks = UnitMasks(model, architecture, [family for family in families if row_of(family) != _HIDDEN])
        if _HIDDEN in self.rows:
            self._gate_hidden(model, architecture)

    def draw(self) -> None:
        """Let chance set the gates, anew at every call, by torch's own generator."""
        self._noise = {row: hard_concrete.noise(alpha_N) for row, alpha_N in self.alphas.items()}

    @contextmanager
    def settled(self, closed: Mapping[Row, Tensor]) -> Iterator[None]:
        """The model with these gates (bool [N]) closed and the others as they will be merged, within the context."""
        before, self._settled = self._settled, self.values(closed)
        try:
            yield
        finally:
            self._settled = before

    def values(self, closed: Mapping[Row, Tensor]) -> dict[Row, Tensor]:
        """The gates without chance, float32 [N].

        Open ones of heads and channels keep the value that training has given them, which can be merged into the layer
        that reads the unit. Those of hidden dimensions and layers become 1: they would have to be merged into the
        embedding, which may be the output head too.
        """
        return {
            row: (~closed[row]).float() if row in _ONE_OR_NONE else hard_concrete.settled(alpha_N.detach(), closed[row])
            for row, alpha_N in self.alphas.items()
        }

    def merged(self, closed: Mapping[Row, Tensor]) -> Callable[[str, Tensor], Tensor]:
        """`(tensor name, trained tensor in float32) -> tensor that computes the same without gates`, itself where it
        has none. What closed hidden dimensions and layers hold is left as it is."""
        values = self.values(closed)
        readers = {of_row[0].reader.tensor: row for row, of_row in self.rows.items() if row not in _ONE_OR_NONE}
        root = _open_root(values[_HIDDEN]) if _HIDDEN in values else None

        def merge(name: str, tensor: Tensor) -> Tensor:
            if name in readers:
                value_N = values[readers[name]]
                return tensor * value_N.repeat_interleave(tensor.shape[1] // len(value_N))
            if root is not None and self._layout.is_hidden_norm(name):
                return tensor * root
            return tensor

        return merge

    def _set(self, *_: Any) -> None:
        """The gates of one forward pass, with a graph of their own: a step has several passes."""
        for row, alpha_N in self.alphas.items():
            if row in self._settled:
                value_N = self._settled[row]
            elif row in self._noise:
                value_N = hard_concrete.drawn(alpha_N, self._noise[row])
            else:
                value_N = torch.ones_like(alpha_N)
            self._values[row] = value_N
            for number, family in enumerate(self.rows[row]):
                if row != _HIDDEN:
                    own_N = value_N[number : number + 1] if row == _LAYER else value_N
                    self._masks.values[family.block, family.kind] = own_N

    def _gate_hidden(self, model: nn.Module, architecture: Architecture) -> None:
        layout = self._layout
        hosts = [layout.host(layer.name) for layer in architecture.writing("hidden")]
        for name in dict.fromkeys([layout.in_module(layout.embedding), *hosts]):
            _multiply_output(model.get_submodule(name), lambda: self._values[_HIDDEN])
        for name, _ in model.named_parameters():
            if layout.is_hidden_norm(layout.from_module(name)):
                norm = model.get_submodule(name.rpartition(".")[0])
                _multiply_output(norm, lambda: _open_root(self._values[_HIDDEN]))


def _multiply_output(module: nn.Module, value: Callable[[], Tensor]) -> None:
    module.register_forward_hook(lambda _, __, output: output * value().to(output.dtype))


def _open_root(value_D: Tensor) -> Tensor:
    """sqrt(K / D). A norm divides by the root mean square over D dimensions; times this it is that over the K that are
    not 0, with an epsilon D / K times as large, as `hidden` cuts it."""
    return (value_D != 0).float().mean().sqrt()

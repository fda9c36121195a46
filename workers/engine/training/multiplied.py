"""Adapters that multiply: W' = W * (1 + s Rep(A) Rep(b)), so that zeros stay zeros (SPP, Lu et al. 2024,
arXiv:2405.16057).

The outputs of a matrix are R bands of as many consecutive ones; a band shares a row of A over the inputs, and every
output has its own b. The factor stands in the forward pass as in the merge, so what is trained is what ships.
O = outputs, I = inputs, N = tokens, R = bands; E = experts, P, Q = the axes of a matrix as it is held.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from workers.engine.training.shards import written
from workers.engine.training.updated_experts import UpdatedExperts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor


def bands(outputs: int, count: int, device: torch.device | None = None) -> Tensor:
    """The band of each output, int64 [O]. Where `count` does not divide them, bands differ by an output."""
    return torch.arange(outputs, device=device) * count // outputs


class MultipliedLinear(nn.Module):
    """A linear layer whose frozen weight is multiplied. GPT-2's Conv1D holds it as [I, O]."""

    def __init__(self, layer: nn.Linear | Conv1D, *, rank: int, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale = layer, scale
        self.transposed = isinstance(layer, Conv1D)
        outputs, inputs = self.frozen().shape
        device = layer.weight.device
        self.a_RI = nn.Parameter(torch.empty(min(rank, outputs), inputs, device=device))
        self.b_O = nn.Parameter(torch.zeros(outputs, device=device))
        _begin(self.a_RI)

    @property
    def weight(self) -> Tensor:
        """As it is multiplied, in the compute type, [O, I] or [I, O]: kernels of some mixers read it past `forward`."""
        weight_OI = _weight(self, self.a_RI, self.b_O).to(self.base_layer.weight.dtype)
        return weight_OI.T if self.transposed else weight_OI

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        found: Tensor | None = self.base_layer.bias
        return found

    def frozen(self) -> Tensor:
        """The layer's own weight, in the compute type, [O, I]."""
        weight = self.base_layer.weight.detach()
        return weight.T if self.transposed else weight

    def factor(self, a_RI: Tensor, b_O: Tensor) -> Tensor:
        """The factor of every weight, [O, I]."""
        return _factor(a_RI, b_O, self.scale)

    @torch.no_grad()
    def held_factor(self) -> Tensor:
        """The same for the weight as it is held, [O, I] or [I, O], float32."""
        factor_OI = self.factor(self.a_RI, self.b_O)
        return factor_OI.T if self.transposed else factor_OI

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Product.apply(x, self.a_RI, self.b_O, self)
        return found if self.bias is None else found + self.bias.to(found.dtype)


class _Product(torch.autograd.Function):
    """y = x W'^T in one product. W' is made when it is needed, forward and backward, and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a_RI: Tensor, b_O: Tensor, layer: MultipliedLinear) -> Tensor:
        ctx.save_for_backward(x, a_RI, b_O)
        ctx.layer = layer
        return linear(x, _weight(layer, a_RI, b_O).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, a_RI, b_O = ctx.saved_tensors
        layer: MultipliedLinear = ctx.layer
        dx = dy @ _weight(layer, a_RI, b_O).to(dy.dtype) if ctx.needs_input_grad[0] else None
        dy_NO, x_NI = dy.flatten(0, -2), x.flatten(0, -2).to(dy.dtype)
        z_OI = (dy_NO.T @ x_NI).to(a_RI.dtype).mul_(layer.frozen()).mul_(layer.scale)
        band_O = bands(len(b_O), len(a_RI), b_O.device)
        # A product instead of an indexed sum, which on a GPU would not give the same bytes every time.
        weighted_RO = (band_O == torch.arange(len(a_RI), device=b_O.device)[:, None]) * b_O
        da_RI = weighted_RO @ z_OI
        db_O = z_OI.mul_(a_RI[band_O]).sum(dim=1)
        return None if dx is None else dx.to(x.dtype), da_RI, db_O, None


class MultipliedExperts(UpdatedExperts):
    """A module that holds all experts of a block; each expert's matrices are multiplied by factors of their own."""

    def __init__(self, experts: nn.Module, transposed: Mapping[str, bool], *, rank: int, scale: float) -> None:
        """`transposed`: parameter -> whether it is [E, I, O]."""
        super().__init__(experts, transposed)
        self.scale = scale
        self.a_ERI, self.b_EO = nn.ParameterDict(), nn.ParameterDict()
        for name, turned in transposed.items():
            weight_EPQ = experts.get_parameter(name)
            count, outputs, inputs = (weight_EPQ.mT if turned else weight_EPQ).shape
            device = weight_EPQ.device
            self.a_ERI[name] = nn.Parameter(torch.empty(count, min(rank, outputs), inputs, device=device))
            self.b_EO[name] = nn.Parameter(torch.zeros(count, outputs, device=device))

    @torch.no_grad()
    def begin(self) -> None:
        for a_ERI in self.a_ERI.values():
            with written(a_ERI.data) as everything:
                _begin(everything)

    def factors(self) -> dict[str, nn.Parameter]:
        """`<parameter>.a_ERI` and `<parameter>.b_EO` -> trained parameter, float32."""
        return {f"{name}.{part}": getattr(self, part)[name] for name in self.transposed for part in ("a_ERI", "b_EO")}

    def updated(self, name: str) -> Tensor:
        weight_EPQ = self.base_layer.get_parameter(name)
        with torch.autocast(weight_EPQ.device.type, enabled=False):
            found_EPQ = weight_EPQ.float() * self._factor(self.a_ERI[name], self.b_EO[name], name)
        return found_EPQ.to(weight_EPQ.dtype)

    @torch.no_grad()
    def held_factor(self, name: str, expert: int) -> Tensor:
        """The factor of the weights of one expert's matrix, as it is held [P, Q], float32."""
        return self._factor(self.a_ERI[name][expert], self.b_EO[name][expert], name)

    def _factor(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        found = _factor(a, b, self.scale)
        return found.mT if self.transposed[name] else found


def multiplied(model: nn.Module, paths: Iterable[str], *, rank: int, scale: float) -> dict[str, MultipliedLinear]:
    """Put a multiplied layer in place of the linear layer on each path."""
    found = {}
    for path in paths:
        layer: nn.Linear | Conv1D = model.get_submodule(path)
        found[path] = MultipliedLinear(layer, rank=rank, scale=scale)
        model.set_submodule(path, found[path])
    return found


def _weight(layer: MultipliedLinear, a_RI: Tensor, b_O: Tensor) -> Tensor:
    return layer.frozen().to(a_RI.dtype) * layer.factor(a_RI, b_O)


def _factor(a_RI: Tensor, b_O: Tensor, scale: float) -> Tensor:
    """1 + s Rep(A) Rep(b), [O, I]; of each expert, if both have an axis of experts before."""
    rows_OI = a_RI[..., bands(b_O.shape[-1], a_RI.shape[-2], b_O.device), :]
    return 1 + scale * rows_OI * b_O.unsqueeze(-1)


def _begin(a_RI: Tensor) -> None:
    """Kaiming's uniform of PyTorch's linear layers, as in the paper's code; b is zero."""
    nn.init.uniform_(a_RI, -1 / math.sqrt(a_RI.shape[-1]), 1 / math.sqrt(a_RI.shape[-1]))

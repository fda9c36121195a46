"""Group-wise weights: codes and an offset per group of consecutive inputs, of which the offset is trained.

A group of L inputs of one output has the weights `alpha q + beta`: q an integer below 2^bits, alpha its step, beta its
least weight (round to nearest, asymmetric). An adapter on inputs averaged over groups, y = W x + s B A mean(x), adds
the same number s (B A)[o, g] / L to all weights of a group. It is a change of beta, so merging it is exact (QA-LoRA,
Xu et al. 2023, arXiv:2309.14717), and the forward pass here is that of the merged weights from the start. Zeros that
pruning left belong to no group. O = outputs, I = inputs, G = groups, N = tokens, R = rank, P = bytes of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import linear

from workers.engine.training.trainable import mask_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from torch import Tensor

UNQUANTISED = 16
ALL = slice(None)
_BYTE = 8


def packed(codes_OI: Tensor, bits: int) -> Tensor:
    """Integers below 2^bits (1, 2, 4 or 8) as bytes, as many in one as fit: uint8 [O, I * bits / 8]."""
    codes_OPK = codes_OI.to(torch.uint8).view(len(codes_OI), -1, _BYTE // bits)
    shifts_K = torch.arange(0, _BYTE, bits, device=codes_OI.device, dtype=torch.uint8)
    return torch.sum(codes_OPK << shifts_K, dim=2, dtype=torch.uint8)


def unpacked(bytes_OP: Tensor, bits: int) -> Tensor:
    """The codes that were `packed`, uint8 [O, I]."""
    shifts_K = torch.arange(0, _BYTE, bits, device=bytes_OP.device, dtype=torch.uint8)
    codes_OPK = torch.bitwise_and(bytes_OP.unsqueeze(2) >> shifts_K, 2**bits - 1)
    return codes_OPK.flatten(1)


class GroupedWeights(nn.Module):
    """Frozen weights, quantised or not, which are moved by an offset for each group. They are parameters without a
    gradient, so that they are divided over ranks like all others."""

    weight_OI: Tensor
    codes_OP: Tensor
    step_OG: Tensor
    least_OG: Tensor
    mask_OP: Tensor

    def __init__(self, weight_OI: Tensor, kept_OI: Tensor | None, *, bits: int, group_size: int) -> None:
        """`kept_OI`: weights that pruning left; None for all."""
        super().__init__()
        self.bits, self.group_size, self.masked = bits, group_size, kept_OI is not None
        if bits == UNQUANTISED:
            self.weight_OI = _frozen(weight_OI)
        else:
            self._quantise(weight_OI.float(), kept_OI)

    def _quantise(self, weight_OI: Tensor, kept_OI: Tensor | None) -> None:
        weight_OGL = self._grouped(weight_OI)
        high_OGL = low_OGL = weight_OGL
        if kept_OI is not None:
            kept_OGL = self._grouped(kept_OI)
            high_OGL, low_OGL = weight_OGL.where(kept_OGL, -torch.inf), weight_OGL.where(kept_OGL, torch.inf)
            self.mask_OP = _frozen(packed(kept_OI, 1))
        high_OG, low_OG = high_OGL.amax(dim=2), low_OGL.amin(dim=2)
        some_OG = high_OG >= low_OG  # a group of zeros alone has neither
        low_OG = low_OG.where(some_OG, 0)
        step_OG = (high_OG - low_OG).where(some_OG, 0) / (2**self.bits - 1)
        codes_OGL = (weight_OGL - low_OG.unsqueeze(2)) / step_OG.where(step_OG > 0, 1).unsqueeze(2)
        self.codes_OP = _frozen(packed(codes_OGL.round().clamp(0, 2**self.bits - 1).flatten(1), self.bits))
        self.step_OG, self.least_OG = _frozen(step_OG), _frozen(low_OG)

    def kept(self, rows: slice = ALL) -> Tensor | None:
        """Boolean [O, I]: weights that pruning left; None for all. `rows`: of these alone, here and below."""
        if not self.masked:
            return None
        return self.weight_OI[rows] != 0 if self.bits == UNQUANTISED else unpacked(self.mask_OP[rows], 1).bool()

    def dense(self, offset_OG: Tensor, rows: slice = ALL) -> Tensor:
        """The weights with these offsets, float32 [O, I]."""
        if self.bits == UNQUANTISED:
            return self.moved(self.weight_OI[rows].float(), offset_OG, rows)
        codes_OGL = self._grouped(unpacked(self.codes_OP[rows], self.bits).float())
        coded_OI = codes_OGL.mul_(self.step_OG[rows].unsqueeze(2)).flatten(1)
        return self.moved(coded_OI, self.least_OG[rows] + offset_OG, rows)

    def moved(self, weight_OI: Tensor, offset_OG: Tensor, rows: slice = ALL) -> Tensor:
        """Weights and the offsets of their groups, added up where pruning left something."""
        moved_OI = (self._grouped(weight_OI) + offset_OG.unsqueeze(2)).flatten(1)
        kept_OI = self.kept(rows)
        return moved_OI if kept_OI is None else moved_OI.mul_(kept_OI)

    def sums(self, values_NI: Tensor) -> Tensor:
        """Sums over the inputs of each group, [N, G]."""
        return self._grouped(values_NI).sum(dim=2)

    def _grouped(self, values_NI: Tensor) -> Tensor:
        return values_NI.reshape(len(values_NI), -1, self.group_size)


class GroupLinear(GroupedWeights):
    """A linear layer with frozen weights and a trained offset per group, of rank R as a matrix."""

    def __init__(
        self, layer: nn.Linear, *, bits: int, group_size: int, rank: int, alpha: float, masked: bool = True
    ) -> None:
        weight_OI = layer.weight.detach()
        super().__init__(weight_OI, mask_of(weight_OI) if masked else None, bits=bits, group_size=group_size)
        self.bias = layer.bias
        groups = layer.in_features // group_size
        self.scale = alpha / rank / group_size
        self.a_RG = nn.Parameter(torch.empty(rank, groups, device=weight_OI.device, dtype=torch.float32))
        self.b_OR = nn.Parameter(torch.zeros(len(weight_OI), rank, device=weight_OI.device, dtype=torch.float32))
        nn.init.xavier_uniform_(self.a_RG)

    @property
    def weight(self) -> Tensor:
        """The weights as trained so far, float32 [O, I]: kernels of some mixers read them past `forward`."""
        return self.dense(self.offsets())

    def offsets(self) -> Tensor:
        """The number that the adapter adds to every kept weight of each group, float32 [O, G]."""
        return self.scale * (self.b_OR @ self.a_RG)

    @torch.no_grad()
    def merged(self, stored_OI: Tensor) -> Tensor:
        """The weights as trained, float32: the values of the codes, or `stored_OI` moved where none were made."""
        offset_OG = self.offsets()
        return self.moved(stored_OI, offset_OG) if self.bits == UNQUANTISED else self.dense(offset_OG)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _GroupProduct.apply(x, self.offsets(), self)
        return found if self.bias is None else found + self.bias


class _GroupProduct(torch.autograd.Function):
    """y = x W^T, where W is made when it is needed, forward and backward, and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset_OG: Tensor, layer: GroupLinear) -> Tensor:
        ctx.save_for_backward(x, offset_OG)
        ctx.layer = layer
        return linear(x, layer.dense(offset_OG).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, offset_OG = ctx.saved_tensors
        layer: GroupLinear = ctx.layer
        dx = dy @ layer.dense(offset_OG).to(dy.dtype)
        dy_NO, x_NI = dy.flatten(0, -2), x.flatten(0, -2).to(dy.dtype)
        kept_OI = layer.kept()
        if kept_OI is None:  # sums of inputs are fewer than weights
            return dx.to(x.dtype), (dy_NO.T @ layer.sums(x_NI)).float(), None
        return dx.to(x.dtype), layer.sums((dy_NO.T @ x_NI).mul_(kept_OI)).float(), None


def replaced(model: nn.Module, names: Iterable[str], masked: Container[str], **group: Any) -> dict[str, GroupLinear]:
    """Put a group layer in place of each named linear layer, and free their weights one by one. `masked`: those whose
    zeros come from pruning."""
    found = {}
    for name in names:
        layer: nn.Linear = model.get_submodule(name)  # type: ignore[assignment]
        found[name] = GroupLinear(layer, masked=name in masked, **group)
        model.set_submodule(name, found[name])
    return found


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)

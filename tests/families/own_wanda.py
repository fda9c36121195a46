"""Wanda in plain torch, for any model: what each product reads is seen where torch multiplies, whatever module asks.

A linear layer, GPT-2's Conv1D, an expert's slice of a three-dimensional tensor and a product over all experts are alike
here: a product of activations with a view of a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.families.loading import blocks_of

_PRODUCTS = {"linear": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)} | dict.fromkeys(
    ("matmul", "__matmul__", "mm", "bmm"), (0, 1)
)
"""Function of torch -> the places of its activations and its weight among the arguments."""
LEAST_TOKENS = 32
"""An expert that was sent fewer is pruned by the magnitude of its weights."""


class Reading(TorchFunctionMode):
    """Sums squares of what products with `parameters` read, per input of each weight."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {tensor.untyped_storage().data_ptr(): name for name, tensor in parameters.items()}
        self._parameters = parameters
        self.squares: dict[str, Tensor] = {}
        """Parameter -> a tensor of its shape: the sum at each weight's input."""
        self.tokens: dict[str, Tensor] = {}
        """Parameter -> tokens of each of its slices, of which all but stacked experts have one."""
        self.axes: dict[str, int] = {}
        """Parameter -> the axis of its inputs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if places := _PRODUCTS.get(name):
            given = [*args, *(kwargs or {}).values()]
            self._see(given[places[0]], given[places[1]], transposed=name != "linear")
        return func(*args, **(kwargs or {}))

    def _see(self, read: Tensor, weight: Tensor, *, transposed: bool) -> None:
        name = self._names.get(weight.untyped_storage().data_ptr())
        if name is None or weight.dtype != torch.float32:
            return
        whole = self._parameters[name]
        squares = self.squares.setdefault(name, torch.zeros_like(whole))
        part = squares.as_strided(weight.shape, weight.stride(), weight.storage_offset())
        inputs = -2 if transposed else -1
        self.axes[name] = whole.stride().index(weight.stride(inputs))
        read = read.detach() if weight.ndim > 2 else read.detach().reshape(-1, read.shape[-1])
        part += read.square().sum(-2).unsqueeze(-1 if transposed else -2)
        slices = len(whole) if whole.ndim > 2 else 1
        tokens = self.tokens.setdefault(name, torch.zeros(slices, dtype=torch.int64))
        first = weight.storage_offset() * slices // whole.numel()
        sent = read.any(-1).sum(-1)  # where all experts read all tokens, those of others are zero
        tokens[first : first + sent.numel()] += sent


def wanda_masks(
    model: nn.Module, ids_NT: Tensor, pruned: Mapping[str, int | None], sparsity: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameter -> what goes [shape of the parameter], and by how much each score is off the threshold of its row.

    Block by block, the pruned ones feeding the next; changes `model`. `pruned`: names of the parameters to prune.
    """
    gone, margins = {}, {}
    named = dict(model.named_parameters())
    prefix, blocks = blocks_of(model)
    for index in range(len(blocks)):
        mine = {name: named[name].data for name in pruned if name.startswith(f"{prefix}.{index}.")}
        with torch.no_grad(), Reading(mine) as reading:
            model(input_ids=ids_NT, use_cache=False)
        for name, weight in mine.items():
            if name not in reading.squares:
                raise ValueError(f"nothing multiplies with {name}")
            axis = reading.axes[name]
            squares = reading.squares[name]
            if weight.ndim > 2:
                squares[reading.tokens[name] < LEAST_TOKENS] = 1.0
            score = (weight.abs() * squares.sqrt()).movedim(axis, -1)
            count = math.floor(score.shape[-1] * sparsity)
            order = score.argsort(dim=-1, stable=True)
            mask = torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order[..., :count], True)
            threshold = score.gather(-1, order[..., count - 1 : count])
            gone[name] = mask.movedim(-1, axis)
            margins[name] = ((score - threshold).abs() / (threshold + 1e-30)).movedim(-1, axis)
            weight[gone[name]] = 0.0
    return gone, margins

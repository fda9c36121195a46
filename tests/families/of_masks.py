"""Checks of zeros in single weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.families.loading import inside, load, logits
from tests.families.own_wanda import wanda_masks
from tests.families.sides import Side, Wrong

NEAR_TIE = 1e-4
"""Where a score is so near to its row's threshold, relative to it, either choice is right."""


def same_otherwise(dense: Side, result: Side) -> dict[str, tuple[Tensor, Tensor]]:
    """Tensors of the modules that differ, dense and pruned; all have the same names, shapes and types, in files too."""
    for one, other, where in ((dense.files, result.files, "files"), (dense.state, result.state, "modules")):
        if one.keys() != other.keys():
            raise Wrong(f"other tensors in the {where}: {sorted(one.keys() ^ other.keys())[:4]}")
        for name, tensor in one.items():
            if (tensor.shape, tensor.dtype) != (other[name].shape, other[name].dtype):
                raise Wrong(f"{name} is {other[name].dtype} {list(other[name].shape)}")
    return {
        name: (tensor, result.state[name])
        for name, tensor in dense.state.items()
        if not torch.equal(tensor, result.state[name])
    }


def zeros_per_row(changed: Mapping[str, tuple[Tensor, Tensor]], sparsity: float, *, rows: bool, kept: bool) -> None:
    """Half of each changed matrix is zero, of each row with `rows`; with `kept` the other half is bit-equal."""
    if not changed:
        raise Wrong("no tensor changed")
    for name, (before, after) in changed.items():
        zero = after == 0
        if kept and not torch.equal(after[~zero], before[~zero]):
            raise Wrong(f"{name}: weights changed that are not zero")
        if rows:
            counts = [zero.sum(axis).unique().tolist() for axis in (-1, -2)]
            wanted = [[math.floor(after.shape[axis] * sparsity)] for axis in (-1, -2)]
            if counts[0] != wanted[0] and counts[1] != wanted[1]:
                raise Wrong(f"{name} {list(after.shape)}: rows with {counts[0]} zeros, columns with {counts[1]}")
        elif abs(zero.float().mean().item() - sparsity) > 0.02:
            raise Wrong(f"{name}: {zero.float().mean().item():.1%} zeros")


def same_masks(dense: Side, changed: Mapping[str, tuple[Tensor, Tensor]], ids_NT: Tensor, sparsity: float) -> None:
    """Our own Wanda drops the same weights."""
    model, _ = load(dense.folder, dense.loader)
    gone, margins = wanda_masks(model, ids_NT, dict.fromkeys(changed), sparsity)
    for name, (_, after) in changed.items():
        if name not in gone:
            raise Wrong(f"{name} was pruned and is in no block")
        other = (gone[name] != (after == 0)) & (margins[name] > NEAR_TIE)
        if other.any():
            raise Wrong(f"{name}: {int(other.sum())} of {other.numel()} entries of the mask are not Wanda's")


def learnt(changed: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Each changed matrix has weights that are neither the dense ones nor zero."""
    for name, (before, after) in changed.items():
        if not ((after != before) & (after != 0)).any():
            raise Wrong(f"{name}: the weights that stay are as they were")


def left(dense: Side, changed: Mapping[str, Any]) -> list[str]:
    """Paths, below the block, of the matrices that were not pruned in any block."""
    pruned = {name.removesuffix(".weight") for name in changed}
    return sorted(path for path in inside(dense.model) if not any(name.endswith(f".{path}") for name in pruned))


def perplexity(result: Side, ids_NT: Tensor, said: float) -> None:
    """The report's perplexity is that of the result over the windows."""
    logits_NTV = logits(result.model, ids_NT)[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits_NTV.flatten(0, 1), ids_NT[:, 1:].flatten())
    if abs(nll.exp().item() / said - 1) > 1e-3:
        raise Wrong(f"perplexity {said:.4f} reported, {nll.exp().item():.4f} found")

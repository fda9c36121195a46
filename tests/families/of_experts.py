"""Checks of a model with fewer experts, or narrower ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.families.loading import blocks_of, logits
from tests.families.of_widths import slices_kept
from tests.families.sides import TOLERANCE, Side, Wrong, differ, ids_for

_NEVER = -1e4
"""A router's logit, or its correction, of an expert that no token is sent to."""


def without_experts(dense: Side, result: Side) -> str:
    """The result is the dense model that sends no token to the experts that went; returns how many stay."""
    if dense.state.keys() != result.state.keys():
        raise Wrong(f"other tensors in the modules: {sorted(dense.state.keys() ^ result.state.keys())[:4]}")
    prefix, blocks = blocks_of(dense.model)
    routers: dict[int, Tensor] = {}
    corrections: dict[str, Tensor] = {}
    said = set()
    for index in range(len(blocks)):
        cut = _cut_of_block(dense, result, f"{prefix}.{index}.")
        kept = _kept(dense, result, cut)
        for name, axis in cut.items():
            before = dense.state[name]
            gone = torch.tensor(sorted({*range(before.shape[axis])} - {*kept}))
            if before.ndim == 2 and axis == 0:
                routers[before.untyped_storage().data_ptr()] = gone
            elif before.ndim < 3 and "bias" in name:
                corrections[name] = gone
            said.add(f"{len(kept)} of {before.shape[axis]}")
    if not said:
        raise Wrong("no expert went")
    ids_NT = ids_for(dense)
    with _corrected(dense, corrections), _Unreachable(routers):
        expected = logits(dense.model, ids_NT)
    if (off := differ(logits(result.model, ids_NT), expected)) > TOLERANCE:
        raise Wrong(f"the logits of the dense model without those experts are others, by {off:.1e}")
    return ", ".join(sorted(said))


def with_narrow_experts(dense: Side, result: Side) -> None:
    """The result is the dense model with zeros in the place of the channels that went, of each expert its own."""
    if dense.state.keys() != result.state.keys():
        raise Wrong(f"other tensors in the modules: {sorted(dense.state.keys() ^ result.state.keys())[:4]}")
    zeroed: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {}
    for name, before in sorted(dense.state.items(), key=lambda item: _is_bias(item[0])):  # their values may be alike
        after = result.state[name]
        if before.shape != after.shape:
            zeroed[name] = _with_zeros(name, before, after, kept)
        elif not torch.equal(before, after):
            raise Wrong(f"{name} changed, and nothing was cut from it")
    if not zeroed:
        raise Wrong("no channel went")
    ids_NT = ids_for(dense)
    with _replaced(dense, zeroed):
        expected = logits(dense.model, ids_NT)
    if (off := differ(logits(result.model, ids_NT), expected)) > TOLERANCE:
        raise Wrong(f"the logits of the dense model without those channels are others, by {off:.1e}")


def _with_zeros(name: str, before: Tensor, after: Tensor, kept: dict[str, list[Tensor]]) -> Tensor:
    """The dense tensor with zeros where the result's has nothing. `kept`: name of a matrix -> its slices that stay, of
    each expert, which is added to; those of a bias are its matrix's."""
    stacked = before.ndim == 3 or (before.ndim == 2 and _is_bias(name))
    whole = torch.zeros_like(before)
    parts = zip(before, after, whole, strict=True) if stacked else [(before, after, whole)]
    for number, (own, left, zeroed) in enumerate(parts):
        axes = [axis for axis in range(own.ndim) if own.shape[axis] != left.shape[axis]]
        if len(axes) != 1 or own.ndim != left.ndim:
            raise Wrong(f"{name} went from {list(own.shape)} to {list(left.shape)}")
        found = kept[_matrix_of(name)][number] if _is_bias(name) else slices_kept(own, left, axes[0])
        if found is None or not torch.equal(own.index_select(axes[0], found), left):
            raise Wrong(f"{name}: what stays is no part of the dense tensor")
        kept.setdefault(name, []).append(found)
        zeroed.index_copy_(axes[0], found, left)
    return whole


def _is_bias(name: str) -> bool:
    return name.endswith(("_bias", ".bias"))


def _matrix_of(bias: str) -> str:
    return f"{bias.removesuffix('bias')}weight" if bias.endswith(".bias") else bias.removesuffix("_bias")


def _cut_of_block(dense: Side, result: Side, start: str) -> dict[str, int]:
    """Tensor -> the axis that is shorter; all others of the block are the same."""
    cut = {}
    for name in (name for name in dense.state if name.startswith(start)):
        before, after = dense.state[name], result.state[name]
        if before.shape == after.shape and torch.equal(before, after):
            continue
        axes = [axis for axis in range(before.ndim) if before.shape[axis] != after.shape[axis]]
        if before.ndim != after.ndim or len(axes) != 1:
            raise Wrong(f"{name} changed")
        cut[name] = axes[0]
    return cut


def _kept(dense: Side, result: Side, cut: Mapping[str, int]) -> list[int]:
    """The experts that stay in a block: the same in all its tensors."""
    found: dict[str, list[int]] = {}
    for name, axis in cut.items():
        if (before := dense.state[name]).ndim > 1 and before.numel() > before.shape[axis]:
            kept = slices_kept(before, result.state[name], axis)
            if kept is None:
                raise Wrong(f"{name}: what stays is no part of the dense tensor")
            found[name] = kept.tolist()
    if not found:
        return []
    kept = next(iter(found.values()))
    for name, axis in cut.items():
        same = dense.state[name].index_select(axis, torch.tensor(kept))
        if not torch.equal(same, result.state[name]):
            raise Wrong(f"{name}: other experts stay than {kept}")
    return kept


@contextmanager
def _corrected(dense: Side, corrections: Mapping[str, Tensor]) -> Iterator[None]:
    """The routers' corrections of experts that go are too low to be chosen."""
    wanted = {name: dense.state[name].clone() for name in corrections}
    for name, gone in corrections.items():
        wanted[name][..., gone] = _NEVER
    with _replaced(dense, wanted):
        yield


@contextmanager
def _replaced(dense: Side, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The dense model with other values in some tensors."""
    before = {name: dense.state[name].clone() for name in tensors}
    try:
        for name, tensor in tensors.items():
            dense.state[name].copy_(tensor)
        yield
    finally:
        for name, tensor in before.items():
            dense.state[name].copy_(tensor)


class _Unreachable(TorchFunctionMode):
    """The logits of experts that go are too low to be chosen."""

    def __init__(self, routers: Mapping[int, Tensor]) -> None:
        """`routers`: storage of a router's weight -> the experts that go."""
        super().__init__()
        self._routers = routers

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "linear":
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if (gone := self._routers.get(weight.untyped_storage().data_ptr())) is not None:
                found[..., gone] = _NEVER
        return found

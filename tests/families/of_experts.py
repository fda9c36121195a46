"""Checks of a model with fewer experts."""

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
    before = {name: dense.state[name].clone() for name in corrections}
    try:
        for name, gone in corrections.items():
            dense.state[name][..., gone] = _NEVER
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

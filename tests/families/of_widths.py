"""Checks of a model with fewer heads, channels or hidden dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.families.loading import load, logits
from tests.families.sides import TOLERANCE, Side, Wrong, differ, ids_for

_ROUNDED = 1e-2
"""Relative: gains that were raised and rounded to bfloat16."""


def masked(dense: Side, result: Side, folder: Path) -> None:
    """The result is the dense model with zeros in the place of what was cut.

    Which slices went is told by comparing: those that stay are bit-equal, but for gains of norms of the hidden vector,
    which may be raised by the square root of what is left of it. Writes the masked model to `folder`.
    """
    if dense.files.keys() != result.files.keys():
        raise Wrong(f"other tensors in the files: {sorted(dense.files.keys() ^ result.files.keys())[:4]}")
    zeroed = {name: tensor.float() for name, tensor in dense.files.items()}
    found: list[Tensor] = []
    vectors = []
    for name, before in dense.files.items():
        after = result.files[name]
        axes = [axis for axis in range(before.ndim) if before.shape[axis] != after.shape[axis]]
        if before.ndim != after.ndim or len(axes) > 1:
            raise Wrong(f"{name} went from {list(before.shape)} to {list(after.shape)}")
        if not axes and not torch.equal(before, after):
            raise Wrong(f"{name} changed, and nothing was cut from it")
        if axes and before.ndim == 1:
            vectors.append(name)
        elif axes:
            kept = slices_kept(before, after, axes[0])
            if kept is None:
                raise Wrong(f"{name}: what stays is no part of the dense tensor")
            zeroed[name] = torch.zeros_like(zeroed[name]).index_copy_(axes[0], kept, after.float())
            found.append(kept)
    if not found:
        raise Wrong("nothing was cut")
    for name in vectors:
        zeroed[name] = _vector(name, dense.files[name].float(), result.files[name].float(), found)
    save(zeroed, folder)
    (folder / "config.json").write_text((dense.folder / "config.json").read_text())
    reference, _ = load(folder, dense.loader)
    ids_NT = ids_for(dense)
    if (off := differ(logits(result.model, ids_NT), logits(reference, ids_NT))) > TOLERANCE:
        raise Wrong(f"the masked dense model's logits are others, by {off:.1e}")


def _vector(name: str, before: Tensor, after: Tensor, found: Iterable[Tensor]) -> Tensor:
    """A bias, or gains, with zeros for what went, as large as they were before norms were raised."""
    fitting = [kept for kept in found if len(kept) == len(after) and int(kept[-1]) < len(before)]
    own = slices_kept(before, after, 0)
    for kept in (*fitting, *([] if own is None else [own])):
        if torch.equal(before[kept], after):
            return torch.zeros_like(before).index_copy_(0, kept, after)
    raised = math.sqrt(len(before) / len(after))
    for kept in fitting:
        for shift in (0.0, 1.0):  # some families store gains less one
            if torch.allclose(after + shift, (before[kept] + shift) * raised, rtol=_ROUNDED, atol=1e-3):
                return before.index_copy(0, kept, (after + shift) / raised - shift)
    raise Wrong(f"{name}: what stays is no part of the dense tensor")


def slices_kept(before: Tensor, after: Tensor, axis: int) -> Tensor | None:
    """Indices, ascending, of the slices of `before` that `after` is made of; None where it is not."""
    slices = {_bytes(part): index for index, part in enumerate(before.unbind(axis))}
    found = [slices.get(_bytes(part), -1) for part in after.unbind(axis)]
    if -1 in found or found != sorted(set(found)):
        return None
    return torch.tensor(found)


def _bytes(part: Tensor) -> bytes:
    return part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def save(tensors: Mapping[str, Tensor], folder: Path) -> None:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})

"""What a result must be, told from the dense checkpoint with torch and transformers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.families.loading import blocks_of, load, logits, stored
from tests.families.own_wanda import wanda_masks

TOLERANCE = 2e-4
"""Of logits, relative to the largest: sums in another order, float32."""
OF_ROUNDED_GAINS = 2e-2
"""The same where the norms' gains were raised and rounded to bfloat16."""
NEAR_TIE = 1e-4
"""Where a score is so near to its row's threshold, relative to it, either choice is right."""
NEW_TOKENS = 6


class Wrong(AssertionError):
    """A result is not what was promised."""


@dataclass(frozen=True)
class Side:
    """A checkpoint: dense, or a result."""

    folder: Path
    loader: Any = AutoModelForCausalLM

    @cached_property
    def loaded(self) -> tuple[Any, dict[str, Any]]:
        return load(self.folder, self.loader)

    @property
    def model(self) -> Any:
        return self.loaded[0]

    @cached_property
    def files(self) -> dict[str, Tensor]:
        return stored(self.folder)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    @cached_property
    def caches(self) -> bool:
        """Whether transformers generates the same with and without a cache."""
        try:
            return cached(self) < TOLERANCE
        except Exception:
            return False


def ids_for(side: Side, length: int = 24) -> Tensor:
    """Token ids [2, T] of letters."""
    drawn = torch.Generator().manual_seed(7)
    return torch.randint(4, 98, (2, length), generator=drawn)


def differ(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    if one.shape != other.shape:
        raise Wrong(f"logits of shape {list(one.shape)} and {list(other.shape)}")
    if not (one.isfinite().all() and other.isfinite().all()):
        raise Wrong("logits that are not finite")
    return ((one - other).abs().max() / other.abs().max()).item()


def loads(result: Side) -> None:
    """Stock transformers loads it, without a word about its tensors."""
    _, said = result.loaded
    if said:
        raise Wrong(f"from_pretrained says {said}")


def cached(side: Side) -> float:
    """How much the logits of generated tokens depend on the cache."""
    ids_NT = ids_for(side, 12)
    found = []
    for use_cache in (True, False):
        with torch.no_grad():
            made = side.model.generate(
                ids_NT,
                attention_mask=torch.ones_like(ids_NT),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                use_cache=use_cache,
                output_logits=True,
                return_dict_in_generate=True,
            )
        found.append(torch.stack(made.logits))
    return differ(*found)


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


def perplexity(result: Side, ids_NT: Tensor, said: float) -> None:
    """The report's perplexity is that of the result over the windows."""
    logits_NTV = logits(result.model, ids_NT)[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits_NTV.flatten(0, 1), ids_NT[:, 1:].flatten())
    if abs(nll.exp().item() / said - 1) > 1e-3:
        raise Wrong(f"perplexity {said:.4f} reported, {nll.exp().item():.4f} found")


def without_block(dense: Side, result: Side) -> str:
    """The result is the dense model with one block skipped; returns which."""
    prefix, blocks = blocks_of(dense.model)
    kept = len(blocks_of(result.model)[1])
    if kept != len(blocks) - 1:
        raise Wrong(f"{kept} of {len(blocks)} blocks stay, and one was to go")

    def tensors(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        start = f"{prefix}.{index}."
        return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}

    def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    gone = next(i for i in range(len(blocks)) if i == kept or not same(*_pair(tensors, dense, result, i, i)))
    for index in range(kept):
        if not same(*_pair(tensors, dense, result, index + (index >= gone), index)):
            raise Wrong(f"block {index} of the result is no block of the dense model")
    outside = [name for name in dense.state if not name.startswith(f"{prefix}.")]
    for name in outside:
        if name not in result.state or not torch.equal(dense.state[name], result.state[name]):
            raise Wrong(f"{name} changed, and is in no block")
    ids_NT = ids_for(dense)
    with _skipping(blocks[gone]):
        expected = logits(dense.model, ids_NT)
    if (off := differ(logits(result.model, ids_NT), expected)) > TOLERANCE:
        raise Wrong(f"without block {gone} the dense model's logits are others, by {off:.1e}")
    before, after = dense.model.config.get_text_config(), result.model.config.get_text_config()
    for name, value in before.to_dict().items():
        if isinstance(value, list) and len(value) == len(blocks):
            wanted = [entry for index, entry in enumerate(value) if index != gone]
            if getattr(after, name) not in (wanted, value if len(set(map(str, value))) == 1 else wanted):
                raise Wrong(f"config {name}: {getattr(after, name)}, not {wanted}")
    return f"block {gone}"


def _pair(of: Callable[..., Any], dense: Side, result: Side, before: int, after: int) -> tuple[Any, Any]:
    return of(dense.state, before), of(result.state, after)


@contextmanager
def _skipping(block: torch.nn.Module) -> Any:
    def hand_on(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden

    handle = block.register_forward_hook(hand_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def masked(dense: Side, result: Side, folder: Path, tolerance: float) -> dict[str, int]:
    """The result is the dense model with zeros in the place of what was cut; returns axis lengths cut, by tensor.

    Which slices went is told by comparing: those that stay are bit-equal but in norms, whose gains may be raised.
    """
    if dense.files.keys() != result.files.keys():
        raise Wrong(f"other tensors in the files: {sorted(dense.files.keys() ^ result.files.keys())[:4]}")
    zeroed, cut, open_ends = dict(dense.files), {}, []
    kept_of: dict[str, Tensor] = {}
    for name, before in dense.files.items():
        after = result.files[name]
        axes = [axis for axis in range(before.ndim) if before.shape[axis] != after.shape[axis]]
        if before.ndim != after.ndim or len(axes) > 1:
            raise Wrong(f"{name} went from {list(before.shape)} to {list(after.shape)}")
        if not axes:
            if not torch.equal(before, after):
                open_ends.append(name)
            continue
        (axis,) = axes
        cut[name] = before.shape[axis] - after.shape[axis]
        if before.ndim == 1:
            continue
        kept = _kept(before, after, axis)
        if kept is None:
            raise Wrong(f"{name}: what stays is no part of the dense tensor")
        zeroed[name] = torch.zeros_like(before).index_copy_(axis, kept, after)
        if axis == 0:
            kept_of[name] = kept
    if not cut:
        raise Wrong("nothing was cut")
    for name in cut:
        before, after = dense.files[name], result.files[name]
        kept = kept_of.get(f"{name.removesuffix('.bias')}.weight")
        if before.ndim == 1 and name.endswith(".bias") and kept is not None:
            if not torch.equal(before[kept], after):
                raise Wrong(f"{name}: other entries stay than rows of its weight")
            zeroed[name] = torch.zeros_like(before).index_copy_(0, kept, after)
    if open_ends:
        raise Wrong(f"{open_ends[0]} changed, and nothing was cut from it")
    save(zeroed, folder)
    (folder / "config.json").write_text((dense.folder / "config.json").read_text())
    reference, _ = load(folder, dense.loader)
    ids_NT = ids_for(dense)
    if (off := differ(logits(result.model, ids_NT), logits(reference, ids_NT))) > tolerance:
        raise Wrong(f"the masked dense model's logits are others, by {off:.1e}")
    return cut


def save(tensors: Mapping[str, Tensor], folder: Path) -> None:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})


def _kept(before: Tensor, after: Tensor, axis: int) -> Tensor | None:
    """Indices, ascending, of the slices of `before` that `after` is made of; None where it is not."""
    slices = {part.contiguous().view(torch.uint8).numpy().tobytes(): i for i, part in enumerate(before.unbind(axis))}
    found = [slices.get(part.contiguous().view(torch.uint8).numpy().tobytes()) for part in after.unbind(axis)]
    if None in found or found != sorted(found) or len(set(found)) != len(found):
        return None
    return torch.tensor(found)

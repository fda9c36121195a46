"""Checks of a model without one of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.families.loading import blocks_of, logits
from tests.families.sides import TOLERANCE, Side, Wrong, differ, ids_for


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
        if isinstance(value, list) and len(value) == len(blocks) and len(set(map(str, value))) > 1:
            wanted = [entry for index, entry in enumerate(value) if index != gone]
            if all(type(entry) is int for entry in value) and value == sorted(set(value)):  # numbers of blocks
                wanted = [entry - (entry > gone) for entry in value if entry != gone]
            if getattr(after, name) != wanted:
                raise Wrong(f"config {name}: {getattr(after, name)}, not {wanted}")
    return f"block {gone}"


def _pair(of: Callable[..., Any], dense: Side, result: Side, before: int, after: int) -> tuple[Any, Any]:
    return of(dense.state, before), of(result.state, after)


@contextmanager
def _skipping(block: torch.nn.Module) -> Iterator[None]:
    def hand_on(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden

    handle = block.register_forward_hook(hand_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

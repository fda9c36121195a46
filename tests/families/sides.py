"""A checkpoint, dense or a result, and what holds for each result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.families.loading import inside, load, stored

TOLERANCE = 2e-4
"""Of logits, relative to the largest: sums in another order, float32."""
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
    def has_experts(self) -> bool:
        """Whether a block holds a stack of experts."""
        return any(tensor.ndim > 2 and "expert" in name for name, tensor in inside(self.model).items())

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

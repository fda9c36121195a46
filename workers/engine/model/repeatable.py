"""Backward passes that give the same bytes every time.

On a GPU some kernels add gradients in whatever order their threads arrive, float32 attention's among them (measured,
docs/benchmarks.md "One H100"), so that a run that is resumed would not end as the one that was killed. torch has
other kernels for most of these.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from torch import nn

R = TypeVar("R")
_SAID = "does not have a deterministic implementation"


class Repeatable:
    """Runs passes by kernels that repeat, until one is needed that does not."""

    def __init__(self, device: torch.device) -> None:
        self._asked = device.type == "cuda"
        if self._asked:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch insists; Hopper's own size

    def run(self, passes: Callable[[], R], module: nn.Module) -> R:
        """The value of `passes`, which fills gradients of `module` that were none before. It may be called twice."""
        if not self._asked:
            return passes()
        try:
            with _deterministic():
                return passes()
        except RuntimeError as error:
            if _SAID not in str(error):
                raise
            warnings.warn(f"gradients repeat up to rounding, not to the byte: {error}", stacklevel=2)
        self._asked = False
        module.zero_grad()
        return passes()


@contextmanager
def _deterministic() -> Iterator[None]:
    mode: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), mode.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    mode.fill_uninitialized_memory = False  # costs time, and finds faults that are not sought here
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        mode.fill_uninitialized_memory = filled

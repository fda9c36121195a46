"""Operations that would be kernels of a GPU, counted on a CPU, and a stand-in for the CUDA graph that launches many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_VIEWS = {"t", "transpose", "slice", "select", "view", "_unsafe_view", "reshape", "unsqueeze", "expand", "split",
          "split_with_sizes", "unbind", "diagonal", "detach", "alias", "permute", "as_strided", "empty", "empty_like",
          "new_empty"}  # fmt: skip
"""Launch nothing."""


class Kernels(TorchDispatchMode):
    """Every operation inside, in order; `count` of those that launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @property
    def count(self) -> int:
        return sum(func.overloadpacket.__name__ not in _VIEWS for func, *_ in self.made)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        self.made.append((func, args, kwargs or {}, found))
        return found


class Graphs:
    """In place of `maths.recorded.recorded`: recorded and replayed as by CUDA, operation by operation, to the same
    memory, with what the operations were given when they were recorded. None of that is counted by `Kernels` around."""

    def __init__(self) -> None:
        self.kernels: list[int] = []
        """Of each graph."""
        self.launches = 0

    def __call__(self, steps: Callable[[], None], device: torch.device) -> Callable[[], None]:
        with _disable_current_modes():
            steps()
            with Kernels() as recorded:
                steps()
        self.kernels.append(recorded.count)

        def replay() -> None:
            self.launches += 1
            with _disable_current_modes():
                for func, args, kwargs, before in recorded.made:
                    for old, new in zip(tree_leaves(before), tree_leaves(func(*args, **kwargs)), strict=True):
                        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)

        return replay

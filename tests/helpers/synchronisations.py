"""Counts, on a CPU, what would make a GPU's host wait: values read from tensors, shapes that hang on values, and copies
between host and device that are not asked to run in the background.

Of the calling thread alone: what another one waits for holds nothing up. What transformers does itself is counted as
its own; a tensor it asks to be where it is already is nothing on any device, so `to` is counted in our code only.
Inside `torch.inference_mode` nothing is seen.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_VALUES = {"_local_scalar_dense", "equal", "is_nonzero"}
_SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
_COPIES = {"cpu", "numpy", "tolist"}


def _asked_by_transformers() -> bool:
    frame = sys._getframe(2)
    while frame is not None and "/workers/" not in frame.f_code.co_filename:
        if "/transformers/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _VALUES | _SHAPES:
            self._counts[f"transformers: {name}" if _asked_by_transformers() else name] += 1
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            # A boolean index is the places where it is true.
            self._counts["index by a mask"] += any(t is not None and t.dtype == torch.bool for t in args[1])
        return func(*args, **kwargs or {})


class _Calls(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        asked = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, (str, torch.device))]
        between = name == "to" and any(str(device) != "meta" for device in asked)
        counts = name in _COPIES or (between and not kwargs.get("non_blocking"))
        if counts and not _asked_by_transformers():
            self._counts[name] += 1
        return func(*args, **kwargs)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Operations done inside, by name."""
    counts: Counter[str] = Counter()
    with _Operations(counts), _Calls(counts):
        yield counts

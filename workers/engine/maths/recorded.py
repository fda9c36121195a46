"""Recorded: many small operations on the same tensors, which a GPU is given all at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch


def recorded(steps: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
    """The same as one CUDA graph of its kernels, one launch for all of them; None where it is not recorded.

    `steps` is called here, on a GPU: its tensors are to be filled afterwards. It must work in place on the same tensors
    at every call, and read no value of a tensor.
    """
    if device.type != "cuda":
        return None
    graph, pool, side = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), _side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side):
            steps()  # libraries allocate what they work with at their first call, which cannot be recorded
            # Other threads copy weights meanwhile: only what this one does is to be judged.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                steps()
            finally:
                graph.capture_end()
    except RuntimeError as error:
        # Also for want of memory: while it records, the allocator does not give back what it keeps.
        warnings.warn(f"a loop runs kernel by kernel, as it could not be recorded: {error}", stacklevel=2)
        _close(pool, device)
        return None
    finally:
        torch.cuda.current_stream(device).wait_stream(side)
    return graph.replay


def _close(pool: tuple[int, int], device: torch.device) -> None:
    """Have the allocator leave the pool of a recording that CUDA broke off: until then it frees nothing that two
    streams used. torch does so itself where a recording ends well, and then there is nothing to leave."""
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Nothing is recorded on the stream of everything else; one, as libraries keep memory for each they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

"""Recorded: many small operations on the same tensors, which a GPU is given all at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch


def recorded(steps: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that does the same as `steps`: on a GPU a CUDA graph of its kernels, one launch for all of them.

    `steps` is called here, on a GPU: its tensors are to be filled afterwards. It must work in place on the same tensors
    at every call, and read no value of a tensor. Where the device cannot record it, it is called as it is.
    """
    if device.type != "cuda":
        return steps
    graph, side = torch.cuda.CUDAGraph(), _side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side):
            steps()  # libraries allocate what they work with at their first call, which cannot be recorded
            # Other threads copy weights meanwhile: only what this one does is to be judged.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                steps()
            finally:
                graph.capture_end()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return steps
    finally:
        torch.cuda.current_stream(device).wait_stream(side)
    return graph.replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Nothing is recorded on the stream of everything else; one, as libraries keep memory for each they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

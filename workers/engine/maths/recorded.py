"""Recorded: many small operations on the same tensors, which a GPU is given all at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch


def recorded(steps: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
    """The same as one CUDA graph of its kernels, one launch for all of them; None where the device cannot record it.

    `steps` is called here, on a GPU: its tensors are to be filled afterwards. It must work in place on the same tensors
    at every call, and read no value of a tensor.
    """
    if device.type != "cuda":
        return None
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
        return None
    finally:
        torch.cuda.current_stream(device).wait_stream(side)
    return graph.replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Nothing is recorded on the stream of everything else; one, as libraries keep memory for each they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

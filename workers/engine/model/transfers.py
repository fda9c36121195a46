"""Transfers: tensors on their way between the host and a GPU, on streams of their own, beside what is computed there.

Both ways are through pinned memory, the only one that a device reads and writes by itself. On a CPU nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

Arrival = Callable[[], dict[str, "Tensor"]]
"""Gives the tensors once they are to be used, or are there."""


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> Arrival:
    """Send tensors, pinned ones in the background. At their arrival what the calling thread gives the device from then
    on waits for them; the thread does not."""
    if device.type != "cuda":
        return lambda: {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    way = _stream(device, "there")
    with torch.cuda.stream(way):
        sent = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        ready = way.record_event()

    def arrived() -> dict[str, Tensor]:
        computing = torch.cuda.current_stream(device)
        computing.wait_event(ready)
        for tensor in sent.values():
            tensor.record_stream(computing)  # its memory is not given to others before it is computed with
        return sent

    return arrived


def to_host(tensors: Mapping[str, Tensor]) -> Arrival:
    """Fetch tensors of one device as the calling thread's work leaves them. Copied at their arrival, for which the
    thread that asks for it waits, and nothing else."""
    device = next((tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"), None)
    if device is None:
        return lambda: dict(tensors)
    computed = torch.cuda.current_stream(device).record_event()

    def arrived() -> dict[str, Tensor]:
        way = _stream(device, "back")
        way.wait_event(computed)
        with torch.cuda.stream(way):
            found = {
                name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
                for name, tensor in tensors.items()
            }
            there = way.record_event()
        there.synchronize()
        return found

    return arrived


@cache
def _stream(device: torch.device, way: Literal["there", "back"]) -> torch.cuda.Stream:
    """One for each direction: the bus carries both at once."""
    return torch.cuda.Stream(device)

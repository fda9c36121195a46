"""Memory: how much a job may take, and returning freed memory to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from typing import Literal

import torch

from workers.engine.host import available_memory, total_memory

_M_MMAP_THRESHOLD = -3
"""glibc's number for the size from which a block is mapped apart."""

Place = Literal["device", "host", "file"]
"""Where hidden states may lie."""
CPU_SHARE = 1 / 64
"""On a CPU, hidden states may take this share of the rest of a walk's memory. More would gain little: a file in the
page cache is nearly as fast, and the system can take that memory back.
"""
DEVICE_SHARE = 0.9
"""Of a GPU's memory: the rest is for CUDA itself, its libraries, and what the allocator cannot make whole."""
PINNED_SHARE = 1 / 4
"""Under a GPU, hidden states may take this share of the host's memory: pinned pages cannot be used by others."""


class Room:
    """Bytes that hidden states may take in memory, shared by all walks of a job."""

    def __init__(self, *, device: int = 0, host: int = 0) -> None:
        """`device` is 0 where that is the CPU, whose memory is the host's."""
        self._left: dict[Place, int] = {"device": device, "host": host}
        self._lock = threading.Lock()

    def take(self, size: int) -> Place:
        """The nearest place that has room for `size` bytes, which are taken until they are given back."""
        with self._lock:
            for place, left in self._left.items():
                if size <= left:
                    self._left[place] = left - size
                    return place
        return "file"

    def give_back(self, place: Place, size: int) -> None:
        with self._lock:
            if place in self._left:
                self._left[place] += size


def give_back() -> None:
    """Collect cycles of references, and have the allocator return freed memory to the system."""
    gc.collect()
    trim()


def return_large_blocks() -> None:
    """Have the C library give back every block of a megabyte and more as soon as it is freed, from now on.

    Else it raises that bound to the largest block freed so far, up to 32 MiB, and keeps the others: parameters that are
    gathered and dropped block by block then stay in memory (60 M shape on two ranks: 1.6 GiB a rank, and 0.8 so).
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, 2**20)


def trim() -> None:
    """Have the allocator return freed memory to the system: glibc keeps what lies below its mmap threshold, as most of
    a model's weights do, in more pieces with every block. Does nothing where the C library is not glibc.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def planned_memory(budget: int | None, device: torch.device, processes: int = 1) -> int:
    """Bytes that the walk plans with: the spec's budget, or where it sets none, all that the device has; of the host's
    memory one of so many processes plans with its part.

    Not the memory that is free now: batches, and so the rounding of sums, must follow from the spec alone.
    """
    if budget is not None:
        return budget
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * DEVICE_SHARE)
    return total_memory() // processes


def room_for_states(device: torch.device, *, walk: int, budget: int, processes: int = 1) -> Room:
    """Memory for hidden states, where the rest of a walk takes `walk` of `budget` bytes. Under a GPU one of so many
    processes takes its part of the host's memory, and leaves half of what is free there: other jobs pin memory too."""
    if device.type == "cuda":
        host = min(total_memory() * PINNED_SHARE, available_memory() / 2)
        return Room(device=max(0, budget - walk), host=int(host / processes))
    return Room(host=max(0, min(budget - walk, int(walk * CPU_SHARE))))


def memory_budget(budget: int | None, device: torch.device, processes: int = 1) -> int:
    """Bytes that whole models may take: the spec's budget, or where it sets none, what is free on the device; of the
    host's memory one of so many processes takes its part.
    """
    if budget is not None:
        return budget
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else what torch keeps for its next tensors, all that the walk freed, counts as taken
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() // processes

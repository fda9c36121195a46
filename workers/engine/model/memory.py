"""Memory: how much a job may take, and giving back what is no longer needed."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from workers.engine.spec import CompressionSpec


def give_back() -> None:
    """Have the allocator return what was freed, and what only cycles of references kept."""
    gc.collect()
    trim()


def trim() -> None:
    """Have the allocator return what was freed: it keeps blocks below its mmap threshold, so most of a model's weights,
    and in ever more pieces, block after block. Does nothing where the C library is not glibc.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def memory_budget(spec: CompressionSpec, device: torch.device) -> int:
    """Bytes the job may take: what the spec says, else what is free on the device."""
    if spec.compute.memory_budget is not None:
        return spec.compute.memory_budget
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(available.split()[1]) * 1024

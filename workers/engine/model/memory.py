"""Memory that is no longer needed, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


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

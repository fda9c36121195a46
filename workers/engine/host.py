"""The host that a process runs on, as the kernel tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def total_memory() -> int:
    """Bytes of the host's memory, or of what our control group (version 2) may take of it."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *(limit for limit, _ in _limits())])


def used_memory() -> int | None:
    """Bytes in use of what `total_memory` counts; None where the kernel does not say."""
    for _, folder in _limits():
        with suppress(OSError, ValueError):
            return int((folder / "memory.current").read_text())
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return total - available
    return None


def _limits() -> Iterator[tuple[int, Path]]:
    """Bytes that our control group may take, and its folder, where it has a limit of its own; then the root's."""
    with suppress(OSError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / group, Path("/sys/fs/cgroup")):
            with suppress(OSError, ValueError):  # of version 1, or `max`
                yield int((folder / "memory.max").read_text()), folder

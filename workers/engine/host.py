"""The host that a process runs on, as the kernel tells it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def total_memory() -> int:
    """Bytes of the host's memory, or of what our control group (version 2) may take of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / group, Path("/sys/fs/cgroup")):
            with suppress(OSError, ValueError):  # of version 1, or `max`
                limits.append(int((folder / "memory.max").read_text()))
    return min(limits)


def used_memory() -> int | None:
    """Bytes in use of what `total_memory` counts; None where the kernel does not say."""
    with suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / group, Path("/sys/fs/cgroup")):
            with suppress(OSError, ValueError):  # of version 1, or without a limit of its own
                int((folder / "memory.max").read_text())
                return int((folder / "memory.current").read_text())
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return total - available
    return None

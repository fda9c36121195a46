"""The host that a process runs on, as the kernel tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def total_memory() -> int:
    """Bytes of the host's memory, or of what our control group (version 2) may take of it."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *(limit for limit, _ in _limits())])


def available_memory() -> int:
    """Bytes that processes here can have now: of the host, and of what our control group (version 2) may take, where
    pages of files are given back first."""
    found = [_meminfo("MemAvailable")["MemAvailable"]]
    for limit, folder in _limits():
        with suppress(OSError, ValueError, KeyError):
            taken = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = int(taken["inactive_file"]) + int(taken["active_file"])
            found.append(max(0, limit - int((folder / "memory.current").read_text()) + files))
    return min(found)


def used_memory() -> int | None:
    """Bytes in use of what `total_memory` counts; None where the kernel does not say."""
    for _, folder in _limits():
        with suppress(OSError, ValueError):
            return int((folder / "memory.current").read_text())
    with suppress(OSError):
        of_host = _meminfo("MemTotal", "MemAvailable")
        return of_host["MemTotal"] - of_host["MemAvailable"]
    return None


def _meminfo(*names: str) -> dict[str, int]:
    """Bytes of some lines of /proc/meminfo."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in names}


def _limits() -> Iterator[tuple[int, Path]]:
    """Bytes that our control group may take, and its folder, where it has a limit of its own; then the root's."""
    with suppress(OSError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / group, Path("/sys/fs/cgroup")):
            with suppress(OSError, ValueError):  # of version 1, or `max`
                yield int((folder / "memory.max").read_text()), folder

"""Use of a worker's devices now: memory and time of each GPU and of the host, as `WorkerRecord.use` has it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workers.devices import output, rows
from workers.engine.host import total_memory, used_memory

USE = ["nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
HOST = "host"


class Use:
    """Looks now and then; a host's processors are as busy as they were since it last looked."""

    def __init__(self, gpus: Iterable[str]) -> None:
        """`gpus` are the worker's, by number or UUID. Instances of one (MIG) are not listed by the driver's program."""
        self._gpus = frozenset(gpus)
        self._before = _processor_times()

    def look(self) -> list[dict[str, Any]]:
        now = _processor_times()
        idle, total = (after - before for after, before in zip(now, self._before, strict=True))
        self._before = now
        host = {
            "device": HOST,
            "memory_bytes": total_memory(),
            "memory_used_bytes": used_memory(),
            "busy": round(1 - idle / total, 4) if total > 0 else None,
        }
        return [host, *self._of_gpus()]

    def _of_gpus(self) -> list[dict[str, Any]]:
        found = []
        for number, uuid, total, used, busy in rows(output(USE), 5) if self._gpus else ():
            if name := next((name for name in (uuid, number) if name in self._gpus), None):
                memory, taken, percent = (int(text) if text.isdecimal() else None for text in (total, used, busy))
                found.append(
                    {
                        "device": name,
                        "memory_bytes": None if memory is None else memory * 2**20,
                        "memory_used_bytes": None if taken is None else taken * 2**20,
                        "busy": None if percent is None else percent / 100,
                    }
                )
        return found


def _processor_times() -> tuple[float, float]:
    """(idle, all) time of the host's processors since it started; zeros where the kernel does not say (macOS)."""
    try:
        times = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return (times[3] + times[4]) / os.sysconf("SC_CLK_TCK"), sum(times) / os.sysconf("SC_CLK_TCK")

"""Time and memory per stage. The time of an inner stage is not counted in the outer one, so that the sum is the
total."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from workers.engine.report import StageReport

if TYPE_CHECKING:
    from workers.engine.events import Events


def device_time_s(device: torch.device) -> float:
    """Seconds on a monotonic clock, once all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock:
    """Adds up elapsed time and peak memory by stage name."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._running: list[str] = []
        self._mark = time.perf_counter()
        self._cpu_mark = time.process_time()
        self._elapsed_s: dict[str, float] = {}
        self._cpu_s: dict[str, float] = {}
        self._resident_bytes: dict[str, int] = {}
        self._device_bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage of the pipeline and measure it."""
        self._events.stage(name)
        with self.measure(name):
            yield

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure a part of stage `name`, wherever it happens."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def report(self) -> list[StageReport]:
        """The stages so far, in the order in which they first ended a part."""
        self._charge()
        return [
            StageReport(
                stage=name,
                elapsed_s=elapsed_s,
                cpu_s=self._cpu_s[name],
                peak_memory_bytes=self._resident_bytes[name],
                device_peak_memory_bytes=self._device_bytes.get(name),
            )
            for name, elapsed_s in self._elapsed_s.items()
        ]

    def _charge(self) -> None:
        """Add the time since the last call to the innermost running stage."""
        if _gpu_in_use():
            torch.cuda.current_stream().synchronize()  # of what is computed: copies go on meanwhile
        now, cpu_now = time.perf_counter(), time.process_time()
        if self._running:
            name = self._running[-1]
            self._elapsed_s[name] = self._elapsed_s.get(name, 0.0) + now - self._mark
            self._cpu_s[name] = self._cpu_s.get(name, 0.0) + cpu_now - self._cpu_mark
            self._resident_bytes[name] = peak_resident_bytes()
            if _gpu_in_use():
                peak = max(torch.cuda.max_memory_allocated(), self._device_bytes.get(name, 0))
                self._device_bytes[name] = peak
                torch.cuda.reset_peak_memory_stats()
        self._mark, self._cpu_mark = now, cpu_now


def _gpu_in_use() -> bool:
    """Whether this process has initialised CUDA, without initialising it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far.

    From /proc, as getrusage also counts what the parent held when it forked us.
    """
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024

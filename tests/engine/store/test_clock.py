"""Where the time went."""

from __future__ import annotations

import time

from workers.engine.events import Silent
from workers.engine.store.clock import Clock, peak_resident_bytes


class Stages(Silent):
    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str) -> None:
        self.names.append(name)


def test_inner_parts_are_taken_off_the_outer_stage() -> None:
    events = Stages()
    clock = Clock(events)
    begin = time.perf_counter()
    with clock.stage("prune"):
        for _ in range(2):
            time.sleep(0.02)
            with clock.measure("score"):
                time.sleep(0.05)
    whole = time.perf_counter() - begin
    elapsed = {report.stage: report.elapsed_s for report in clock.report()}
    assert elapsed["score"] >= 0.1
    assert 0.04 <= elapsed["prune"] < 0.1 + whole - 0.14
    assert abs(sum(elapsed.values()) - whole) < 0.01
    assert events.names == ["prune"], "parts are not announced"


def test_waiting_is_no_processor_time() -> None:
    clock = Clock(Silent())
    with clock.stage("calibrate"):
        time.sleep(0.2)
    with clock.stage("prune"):
        begin = time.process_time()
        while time.process_time() - begin < 0.1:
            pass
    cpu_s = {report.stage: report.cpu_s or 0.0 for report in clock.report()}
    assert cpu_s["calibrate"] < 0.1 <= cpu_s["prune"]


def test_peak_memory_remembers_what_is_gone() -> None:
    before = peak_resident_bytes()
    block = bytearray(b"x") * (before + 50_000_000)
    del block
    assert peak_resident_bytes() >= before + 50_000_000

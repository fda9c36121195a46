"""Turns: two models measured in paired rounds, so that other load of the machine does not change their ratio.

Both are in memory if they fit. If not, they are loaded in turn, and all of their probes are read at every visit.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence

from workers.engine.contracts.facts import Probe
from workers.engine.maths.paired import Comparison, compare
from workers.engine.maths.standard_errors import SURE, half_width

Open = Callable[[], Sequence[Probe]]
"""Put a model into memory and return its probes; it stays there for as long as they live."""

MOST_ROUNDS = 400
MOST_S = 60.0
"""A probe is read until its interval is narrow, for at most so many seconds."""
LEAST_S = 3.0
"""A probe is read for at least so many seconds: in fewer, all rounds may fall into one disturbance (×0.94 ± 0.01 in 0.5
s)."""
MORE = 1.25
"""Factor of the number of rounds before the interval is computed again."""
VISITS = 8
"""Of each model where they are loaded in turn: two in a row are one load, so one is loaded five times, one four."""
READINGS = 3
"""Of a probe at a visit, at least; their median counts."""


def in_turn(dense: Open, pruned: Open, *, resident: bool) -> list[tuple[Probe, Comparison]]:
    """How the models compare by each of their probes, of which both have the same. `resident`: both fit in memory."""
    if not resident:
        return _visited(dense, pruned)
    return [(d, _rounds(d, p)) for d, p in zip(dense(), pruned(), strict=True)]


def _rounds(*probes: Probe) -> Comparison:
    """Of the dense and the pruned model's, until the interval of the ratio (SURE) is the margin to either side."""
    values: tuple[list[float], list[float]] = ([], [])
    enough, begun_s = max(4, probes[0].readings), time.monotonic()
    while True:
        while len(values[0]) < enough:
            for side in (0, 1, 1, 0):
                values[side].append(probes[side].read())
        found = compare(*values)
        half = half_width(found.ratio_stderr, found.degrees_of_freedom, SURE)
        narrow = half <= probes[0].margin * found.ratio
        spent_s = time.monotonic() - begun_s
        if enough >= MOST_ROUNDS or spent_s > MOST_S or (narrow and spent_s > min(LEAST_S, MOST_S)):
            return found
        enough = min(math.ceil(enough * MORE), MOST_ROUNDS)


def _visited(*opens: Open) -> list[tuple[Probe, Comparison]]:
    values: tuple[list[list[float]], list[list[float]]] = ([], [])
    held: tuple[int, Sequence[Probe]] | None = None
    for side in (0, 1, 1, 0) * (VISITS // 2):
        if held is None or held[0] != side:
            held = None
            gc.collect()  # the one model must be gone before the other is loaded
            held = (side, opens[side]())
        values[side].append([_median(probe) for probe in held[1]])
    assert held is not None
    by_probe = zip(held[1], zip(*values[0], strict=True), zip(*values[1], strict=True), strict=True)
    return [(probe, compare(dense, pruned)) for probe, dense, pruned in by_probe]


def _median(probe: Probe) -> float:
    readings = max(READINGS, math.ceil(probe.readings / VISITS))
    return statistics.median(probe.read() for _ in range(readings))

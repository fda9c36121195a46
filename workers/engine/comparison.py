"""How sure a comparison of two models is: standard errors of pruned - dense and of pruned / dense. Import-light.

Both models read the same samples, and what is hard for one is hard for the other: the difference between them varies
far less over samples than either does. Where a measurement says what each sample added (`parts`), the comparison is
made sample by sample; elsewhere the two are taken to be independent, which is on the safe side for as long as their
errors have the same sign.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.engine.stats import Measurement


def difference_stderr(dense: Measurement, pruned: Measurement) -> float | None:
    """Standard error of pruned - dense, in the measurement's unit; None where both are exact."""
    return _stderr(dense, pruned, 1.0, 1.0)


def ratio_stderr(dense: Measurement, pruned: Measurement) -> float | None:
    """Standard error of pruned / dense by the delta method: of pruned / p - dense / d, times p / d, where p and d are
    the values measured. None where both are exact, and where dense is zero."""
    if not dense.value:
        return None
    return _stderr(dense, pruned, pruned.value / dense.value**2, 1 / dense.value)


def _stderr(dense: Measurement, pruned: Measurement, dense_weight: float, pruned_weight: float) -> float | None:
    """Of pruned_weight * pruned - dense_weight * dense."""
    if dense.parts and pruned.parts and len(dense.parts) == len(pruned.parts) > 1:
        parts = [pruned_weight * p - dense_weight * d for d, p in zip(dense.parts, pruned.parts, strict=True)]
        return statistics.stdev(parts) / math.sqrt(len(parts))
    if dense.stderr is None and pruned.stderr is None:
        return None
    return math.hypot(pruned_weight * (pruned.stderr or 0), dense_weight * (dense.stderr or 0))

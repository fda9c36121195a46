"""Compare two models that were measured in turn, on a machine with other load. N = rounds.

A round measures both, one right after the other, dense first in one round and pruned first in the next. A slowdown
that outlasts a round slows both models and leaves their ratio; one that begins or ends within a round makes an outlier,
which is trimmed; the standard error accounts for the correlation of consecutive rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workers.engine.maths.standard_errors import CONFIDENCE, half_width

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRIMMED = 0.2
"""Fraction of the values set aside at either end (Yuen 1974, doi:10.1093/biomet/61.1.165)."""
LEAST_BATCHES = 8
"""Least number of batches of consecutive values that a standard error is computed over."""


@dataclass(frozen=True)
class Comparison:
    """One measurement of two models, from paired rounds. Values are in its unit, > 0."""

    dense: float
    pruned: float
    """`dense` and `pruned` have the geometric mean of the median round and differ by the factor `ratio`, which medians
    of each would not where the machine drifts."""
    ratio: float
    """pruned / dense."""
    dense_stderr: float
    pruned_stderr: float
    """Standard error of either model's value alone, variation of the machine included."""
    ratio_stderr: float
    degrees_of_freedom: float
    """Of Student's t, for `ratio_stderr`."""
    pruned_degrees_of_freedom: float
    """For `pruned_stderr`."""
    rounds: int

    @property
    def interval(self) -> tuple[float, float]:
        """Interval that holds the true ratio with probability CONFIDENCE."""
        margin = half_width(self.ratio_stderr, self.degrees_of_freedom, CONFIDENCE)
        return self.ratio - margin, self.ratio + margin

    @property
    def difference_stderr(self) -> float:
        """Standard error of pruned - dense = dense * (ratio - 1)."""
        return math.hypot(self.dense * self.ratio_stderr, (self.ratio - 1) * self.dense_stderr)


def compare(dense: Sequence[float], pruned: Sequence[float]) -> Comparison:
    """Compare rounds in the order they were made: an even number, at least four; every value > 0.

    The estimate is a trimmed mean of log(pruned / dense). As the order within rounds alternates, an effect of the
    order raises one round and lowers the next.
    """
    if len(dense) != len(pruned) or len(dense) < 4 or len(dense) % 2:
        raise ValueError(f"{len(dense)} and {len(pruned)} rounds: four or more are needed, and an even number")
    dense_N, pruned_N = np.log(dense), np.log(pruned)
    mean, stderr, freedom = trimmed_mean(pruned_N - dense_N)
    (_, dense_stderr, _), (_, pruned_stderr, pruned_freedom) = trimmed_mean(dense_N), trimmed_mean(pruned_N)
    both, half = float(np.median(dense_N + pruned_N)) / 2, mean / 2
    ratio, at_dense, at_pruned = math.exp(mean), math.exp(both - half), math.exp(both + half)
    # The interval is symmetric in the logarithm; of the ratio, its longer side is used for both.
    sure = half_width(1.0, freedom, CONFIDENCE)
    return Comparison(
        dense=at_dense,
        pruned=at_pruned,
        ratio=ratio,
        dense_stderr=at_dense * dense_stderr,
        pruned_stderr=at_pruned * pruned_stderr,
        ratio_stderr=ratio * math.expm1(min(sure * stderr, 50.0)) / sure,
        degrees_of_freedom=freedom,
        pruned_degrees_of_freedom=pruned_freedom,
        rounds=len(dense),
    )


def trimmed_mean(values_N: NDArray[np.float64]) -> tuple[float, float, float]:
    """(mean without the TRIMMED ends, its standard error, degrees of freedom) of two or more values in order of time.

    Yuen's, from the standard deviation of the winsorised values; the largest of those over batches of 1, 2, 4, …
    consecutive ones (Flyvbjerg and Petersen 1989, doi:10.1063/1.457480), so that it holds where neighbours are alike.
    """
    count = len(values_N)
    cut = int(TRIMMED * count)
    kept = np.sort(values_N)[cut : count - cut]
    batches_N = values_N.clip(kept[0], kept[-1])
    found = []
    while True:
        stderr = float(batches_N.std(ddof=1)) / math.sqrt(len(batches_N)) / (1 - 2 * cut / count)
        found.append((stderr, min(len(batches_N), len(kept)) - 1))
        if len(batches_N) < 2 * LEAST_BATCHES:
            break
        batches_N = _by_twos(batches_N)
    stderr, freedom = max(found, key=lambda one: half_width(one[0], one[1], CONFIDENCE))
    return float(kept.mean()), stderr, freedom


def _by_twos(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of consecutive pairs; the last one of an odd number is left out."""
    even = len(values_N) // 2 * 2
    means: NDArray[np.float64] = values_N[:even].reshape(-1, 2).mean(axis=1)
    return means

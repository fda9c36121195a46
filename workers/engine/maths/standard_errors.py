"""Standard errors and intervals of pruned - dense and of pruned / dense, for two models measured on the same samples.

Both models read the same samples, and what is hard for one is hard for the other: the difference between them varies
far less over samples than either does. Where a measurement says what each sample added (`parts`), the comparison is
made sample by sample; elsewhere the two are taken to be independent, which is on the safe side for as long as their
errors have the same sign.

Samples of one document are alike too. Where it is known which document each is of, the error is that over documents,
and the interval says what others like them would give; of one document nothing is known but how its own samples
differ, and the interval is about this text alone. Import-light.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.engine.contracts.facts import Measurement


CONFIDENCE = 0.95
"""Two-sided level of the intervals that decide how a change is described."""
SURE = 0.999
"""The same for times: with 0.95, one description in twenty would be due to chance on a disturbed machine."""


class Spread(NamedTuple):
    """The standard error of a mean and its degrees of freedom."""

    stderr: float | None
    degrees_of_freedom: float | None


def spread(parts: Sequence[float], documents: Sequence[int] | None) -> Spread:
    """The error of the mean of `parts`, which come from `documents`; undefined for fewer than two parts.

    Over documents: the delete-one-document jackknife with Student's t of one degree of freedom fewer than documents
    (Cameron and Miller 2015, doi:10.3368/jhr.50.2.317; coverage: benchmarks/coverage.py), or the error over parts as if
    they were independent, whichever makes the wider interval. Where all are of one document, or it is not known, the
    latter.
    """
    if len(parts) < 2:
        return Spread(None, None)
    mean = sum(parts) / len(parts)
    alone = math.sqrt(sum((part - mean) ** 2 for part in parts) / (len(parts) - 1) / len(parts))
    over_parts = Spread(alone, len(parts) - 1)
    if documents is None or len(set(documents)) < 2:
        return over_parts
    by_document: defaultdict[int, list[float]] = defaultdict(list)
    for part, document in zip(parts, documents, strict=True):
        by_document[document].append(part)
    count, total = len(by_document), sum(parts)
    without = [(total - sum(own)) / (len(parts) - len(own)) for own in by_document.values()]
    jackknife = math.sqrt((count - 1) / count) * math.dist(without, [sum(without) / count] * count)
    over_documents = Spread(jackknife, count - 1)
    return max(
        over_documents,
        over_parts,
        key=lambda found: half_width(found.stderr or 0, found.degrees_of_freedom, CONFIDENCE),
    )


def half_width(stderr: float, degrees_of_freedom: float | None, confidence: float) -> float:
    """Half of the two-sided interval that holds the true value with `confidence`, in (0, 1)."""
    from scipy.special import ndtri, stdtrit

    quantile = 0.5 + confidence / 2
    return float(stderr * (ndtri(quantile) if degrees_of_freedom is None else stdtrit(degrees_of_freedom, quantile)))


def compared(dense: Measurement, pruned: Measurement) -> dict[str, Any]:
    """The fields of a `Metric` about the errors of difference and ratio."""
    difference, ratio = difference_spread(dense, pruned), ratio_spread(dense, pruned)
    freedoms = [found.degrees_of_freedom for found in (difference, ratio) if found.degrees_of_freedom is not None]
    return {
        "difference_stderr": difference.stderr,
        "ratio_stderr": ratio.stderr,
        "degrees_of_freedom": min(freedoms, default=None),
        "pruned_degrees_of_freedom": pruned.degrees_of_freedom,
        "interval_over": interval_over(pruned),
    }


def interval_over(found: Measurement) -> Literal["documents", "text"] | None:
    """The population that the interval of a measurement covers; None without samples, or with one."""
    if found.parts is None:
        return None
    return "documents" if found.documents is not None and len(set(found.documents)) > 1 else "text"


def difference_spread(dense: Measurement, pruned: Measurement) -> Spread:
    """The error of pruned - dense, in the measurement's unit; none where both are exact."""
    return _spread(dense, pruned, 1.0, 1.0)


def ratio_spread(dense: Measurement, pruned: Measurement) -> Spread:
    """The error of pruned / dense by the delta method: of pruned / p - dense / d, times p / d, where p and d are the
    values measured. None where both are exact, or dense is zero."""
    if not dense.value:
        return Spread(None, None)
    return _spread(dense, pruned, pruned.value / dense.value**2, 1 / dense.value)


def _spread(dense: Measurement, pruned: Measurement, dense_weight: float, pruned_weight: float) -> Spread:
    """The error of pruned_weight * pruned - dense_weight * dense."""
    if dense.parts and pruned.parts and len(dense.parts) == len(pruned.parts) > 1:
        parts = [pruned_weight * p - dense_weight * d for d, p in zip(dense.parts, pruned.parts, strict=True)]
        return spread(parts, pruned.documents)
    if dense.stderr is None and pruned.stderr is None:
        return Spread(None, None)
    freedoms = [m.degrees_of_freedom for m in (dense, pruned) if m.stderr and m.degrees_of_freedom is not None]
    stderr = math.hypot(pruned_weight * (pruned.stderr or 0), dense_weight * (dense.stderr or 0))
    return Spread(stderr, min(freedoms, default=None))

"""The least sparsity, or number of units, at which a result keeps the limits of `at_most`. Import-light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.contracts.needed import needed
from workers.engine.errors import InvalidSpec, NumericalFailure
from workers.engine.planning.result_size import macs_after, parameters_after, stored_bytes
from workers.engine.removals.base import removal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import AllocationFacts
    from workers.engine.removals.outcome import Outcome
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec

STEPS = 1 << 14
"""Steps of the search in [0, 1): a step is less than a channel of a block of LLaMA-7B."""


def fitting_sparsity(
    spec: CompressionSpec,
    source: ModelSource,
    architecture: Architecture,
    facts: AllocationFacts,
    decode_time: Callable[[Outcome], float] | None = None,
    *,
    within: float | None = None,
) -> tuple[float, float | None]:
    """(sparsity, decode time at it or None where the spec does not bound it), by bisection: sizes fall with sparsity.

    Counts are exact: the allocation is carried out as it is. `decode_time`: of a model of such structure, relative
    to the dense one's. `within`: its bound; the spec's if None.
    Raises InvalidSpec where no sparsity is enough.
    """
    removal = removal_of(spec)

    def outcome(step: int) -> Outcome | None:
        return removal.outcome(spec, source, architecture, removal.spread(spec, facts, step / STEPS))

    step, foreseen = _least(spec, source, architecture, STEPS, outcome, decode_time, within)
    return step / STEPS, foreseen


def fitted(
    spec: CompressionSpec,
    source: ModelSource,
    architecture: Architecture,
    decode_time: Callable[[Outcome], float] | None = None,
    *,
    within: float | None = None,
) -> tuple[int, float | None]:
    """(number of units, decode time or None), the same where one number says the structure of the result."""
    removal = removal_of(spec)
    counts = removal.counts(spec, source, architecture)

    def outcome(step: int) -> Outcome | None:
        return removal.outcome(spec.with_count(counts[step]), source, architecture, None)

    step, foreseen = _least(spec, source, architecture, len(counts), outcome, decode_time, within)
    return counts[step], foreseen


def _least(
    spec: CompressionSpec,
    source: ModelSource,
    architecture: Architecture,
    steps: int,
    outcome_of: Callable[[int], Outcome | None],
    decode_time: Callable[[Outcome], float] | None,
    within: float | None,
) -> tuple[int, float | None]:
    """(first of so many steps, each a smaller model than the one before, that fits, its decode time).

    Steps that cannot be carried out are the last ones. Raises InvalidSpec where none fits.
    """
    limits = dict(needed(spec.edit.size_limit, "/prune/at_most").limits)
    if within is not None:
        limits["decode_time"] = within
    sizes = _sizes(spec, source, architecture)
    if decode_time is not None:
        sizes["decode_time"] = decode_time
    smallest: dict[str, float] = {}
    fitting: dict[str, float] = {}
    low, high, found = -1, steps, None  # low is too large a model, high fits, or cannot be cut
    while high - low > 1:
        middle = (low + high) // 2
        try:
            outcome = needed(outcome_of(middle), "the outcome of a step")
        except (InvalidSpec, NumericalFailure):
            high = middle
            continue
        smallest = {name: sizes[name](outcome) for name in limits}
        if all(smallest[name] <= most for name, most in limits.items()):
            high = found = middle
            fitting = smallest
        else:
            low = middle
    if found is None:
        name, most = next((n, most) for n, most in limits.items() if not smallest or smallest[n] > most)
        raise InvalidSpec(
            f"the model cannot be cut to {name} {most:,}"
            + (f": the smallest with this spec has {smallest[name]:,}" if smallest else ""),
            "allow more, let more kinds of unit go, protect fewer blocks, or start from a smaller model",
            field=f"/prune/at_most/{name}",
        )
    return found, fitting.get("decode_time")


def _sizes(
    spec: CompressionSpec, source: ModelSource, architecture: Architecture
) -> dict[str, Callable[[Outcome], float]]:
    """Limit -> the largest size that a result of a structure may have, of those that the spec limits."""
    limit = needed(spec.edit.size_limit, "/prune/at_most")
    counted: dict[str, Callable[[Outcome], int]] = {
        "parameters": lambda outcome: parameters_after(source, outcome),
        "bytes": lambda outcome: stored_bytes(spec.package.dtype, source, outcome),
        "macs": lambda outcome: macs_after(source, architecture, outcome, limit.tokens),
    }
    removal = removal_of(spec)
    return {
        name: removal.at_largest(spec, source, architecture, size)
        for name, size in counted.items()
        if name in limit.limits
    }

"""Budget: the smallest sparsity at which a result is as small as asked. Import-light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.architectures.coupled import families
from workers.engine.contracts.params import UnitPruneParams
from workers.engine.errors import InvalidSpec, NumericalFailure
from workers.engine.planning.layer_sparsities import allocation
from workers.engine.planning.result_size import macs_after, parameters_after, stored_bytes
from workers.engine.removals.outcome import Outcome
from workers.engine.removals.widths import kept_units

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import AllocationFacts
    from workers.engine.removals.widths import Widths
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec

STEPS = 1 << 14
"""How finely a sparsity is searched for: by less than a channel of a block of LLaMA-7B."""


def fitting_sparsity(
    spec: CompressionSpec,
    source: ModelSource,
    architecture: Architecture,
    facts: AllocationFacts,
    decode_time: Callable[[Widths], float] | None = None,
    *,
    within: float | None = None,
) -> tuple[float, float | None]:
    """By bisection, as what is left shrinks with the sparsity; and the decode time at it, where the spec bounds that.

    Counts are exact: the allocation is carried out as it is. `decode_time`: of a model with such widths, relative to
    the dense one's. `within`: what it is held to; the spec's bound if None.
    Raises InvalidSpec where no sparsity is enough.
    """
    assert isinstance(spec.prune, UnitPruneParams)
    assert spec.prune.at_most is not None  # nobody else asks
    limits, cut = dict(spec.prune.at_most.limits), families(architecture, source.config, source.tensors)
    if within is not None:
        limits["decode_time"] = within
    smallest: dict[str, float] = {}
    fitting: dict[str, float] = {}
    low, high, found = -1, STEPS, None  # in steps: low is too large a model, high fits, or cannot be cut
    while high - low > 1:
        middle = (low + high) // 2
        try:
            sparsity = allocation(spec, facts, middle / STEPS)
            widths = kept_units(architecture.layers, cut, sparsity, spec.prune, spec.allocate)
        except (InvalidSpec, NumericalFailure):
            high = middle
            continue
        outcome = Outcome(architecture.layout, range(architecture.blocks), cut, widths)
        smallest = {
            "parameters": parameters_after(source, outcome),
            "bytes": stored_bytes(spec, source, outcome),
            "macs": macs_after(source, architecture, outcome, spec.prune.at_most.tokens),
        }
        if decode_time is not None:
            smallest["decode_time"] = decode_time(widths)
        if all(smallest[name] <= limit for name, limit in limits.items()):
            high = found = middle
            fitting = smallest
        else:
            low = middle
    if found is None:
        name, limit = next((n, limit) for n, limit in limits.items() if not smallest or smallest[n] > limit)
        raise InvalidSpec(
            f"the model cannot be cut to {name} {limit:,}"
            + (f": the smallest with this allocation has {smallest[name]:,}" if smallest else ""),
            "allow more, let heads and channels go, protect fewer blocks, or start from a smaller model",
            field=f"/prune/at_most/{name}",
        )
    return found / STEPS, fitting.get("decode_time")

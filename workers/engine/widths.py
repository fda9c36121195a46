"""How many heads and channels of every block stay, from the sparsity of its layers. Import-light, for dry runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from workers.engine.errors import InvalidSpec

if TYPE_CHECKING:
    from workers.engine.architectures.coupled import Family
    from workers.engine.registry import UnitPruneParams
    from workers.engine.stats import LinearFacts

Widths = Mapping[tuple[int, str], int]
"""(block, kind) -> units that stay."""


def kept_units(
    layers: Sequence[LinearFacts], found: Sequence[Family], sparsity: Mapping[str, float], params: UnitPruneParams
) -> Widths:
    """Units that stay in every family: at least one of each.

    Heads are few and large: the number nearest to the attention's sparsity goes. Channels make up for the difference,
    so that a block loses its share of parameters to within half a channel, or half of `channel_multiple`; one that is
    to lose nothing keeps all. Raises InvalidSpec where a block cannot lose as much, /prune/units being what stands in
    the way, or has no multiple of channels to keep.
    """
    kept: dict[tuple[int, str], int] = {}
    by_block: dict[int, list[Family]] = {}
    for family in found:
        by_block.setdefault(family.block, []).append(family)
    for block, of_block in by_block.items():
        heads, channels = of_block
        budget = sum(sparsity[layer.name] * layer.parameters for layer in layers if layer.block == block)
        if not budget:
            kept |= {(block, family.kind): family.units for family in of_block}
            continue
        if "channel" in params.units and params.channel_multiple > channels.units:
            raise InvalidSpec(
                f"block {block} has {channels.units} channels: no multiple of {params.channel_multiple} can stay",
                "lower channel_multiple",
                field="/prune/channel_multiple",
            )
        share = sparsity[heads.reader.tensor.removesuffix(".weight")]
        if "channel" not in params.units:
            share = budget / (heads.units * heads.unit_parameters)
        gone = round(share * heads.units) if "head" in params.units else 0
        gone = min(gone, heads.units - 1)
        kept[block, "head"] = heads.units - gone
        kept[block, "channel"] = channels.units
        if "channel" in params.units:
            left = channels.units - (budget - gone * heads.unit_parameters) / channels.unit_parameters
            step = params.channel_multiple
            kept[block, "channel"] = min(channels.units // step, max(1, round(left / step))) * step
        missed = budget - sum((f.units - kept[block, f.kind]) * f.unit_parameters for f in of_block)
        step = channels.unit_parameters * params.channel_multiple
        if "channel" not in params.units:
            step = heads.unit_parameters
        if missed > 0.5001 * step:  # more than rounding explains
            raise InvalidSpec(
                f"block {block} cannot lose {budget / sum(f.units * f.unit_parameters for f in of_block):.0%} of its "
                f"parameters in {' and '.join(f'{kind}s' for kind in params.units)}: one unit of each kind stays",
                "lower the sparsity, let heads and channels go, or protect fewer blocks",
                field="/prune/units",
            )
    return kept


def best_units(scores: Sequence[float], count: int) -> list[int]:
    """The `count` units of the highest scores, ascending. On ties the higher index stays."""
    order = sorted(range(len(scores)), key=lambda unit: (scores[unit], unit))
    return sorted(order[len(order) - count :])

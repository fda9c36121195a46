"""Number of heads and channels that every block keeps, from the sparsity of its layers. Import-light, for dry runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.engine.architectures.architecture import Family
from workers.engine.contracts.params import SizedPruneParams, Unit
from workers.engine.errors import InvalidSpec

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.params import MethodParams

Widths = Mapping[tuple[int, str], int]
"""(block, kind) -> units that stay."""
_ROUNDED = 0.5001
"""Fraction of a step (a channel, or `channel_multiple` of them) by which rounding may miss a block's share."""


class UnitPruneParams(SizedPruneParams):
    """Base of the parameters of pruners that remove heads and channels."""

    units: tuple[Unit, ...]
    """Kinds to remove."""
    protect_first: int
    protect_last: int
    """Blocks at either end that lose nothing."""
    channel_multiple: int
    """Channels kept are a multiple of this."""

    @property
    def kinds(self) -> tuple[Unit, ...]:
        return self.units


def multiples(width: int, of: int) -> list[int]:
    """The numbers of units that may stay of so many, falling: all, or a multiple `of` a number."""
    return sorted({*range(of, width + 1, of), width}, reverse=True)


def kept_units(
    layers: Sequence[LinearFacts],
    found: Sequence[Family],
    sparsity: Mapping[str, float],
    params: UnitPruneParams,
    allocate: MethodParams,
) -> Widths:
    """Units that stay in every family: at least one of each, and what `allocate` says must.

    Where a block may lose less than its share, the rest is taken from the other unprotected blocks, in proportion to
    what each may still lose. Heads are few and large: the number nearest to the attention's sparsity is removed.
    Channels make up for the difference, so that a block loses its share of parameters to within half a channel, or
    half of `channel_multiple`; one whose share is zero keeps all. Raises InvalidSpec where the blocks together cannot
    lose as much, naming the limit that prevents it, or where a block has no multiple of channels to keep.
    """
    kept: dict[tuple[int, str], int] = {(family.block, family.kind): family.units for family in found}
    by_block = {(family.block, family.kind): family for family in found}
    wanted: dict[int, float] = {}
    blocks: dict[int, _Block] = {}
    by_weight = {layer.weight: sparsity[layer.name] for layer in layers}
    last = max(layer.block for layer in layers) - params.protect_last
    for block in range(params.protect_first, last + 1):
        of_block = [layer for layer in layers if layer.block == block]
        heads, channels = (by_block.get((block, kind), _none(block, kind)) for kind in ("head", "channel"))
        wanted[block] = sum(sparsity[layer.name] * layer.parameters for layer in of_block)
        total = sum(layer.parameters for layer in of_block)
        blocks[block] = _bounded(heads, channels, total, params, allocate, asked=wanted[block] > 0)
    if len({bounded.like for bounded in blocks.values()}) > 1 and len(set(sparsity.values())) == 1:
        together = _together(list(blocks.values()), params, allocate)
        if together is not None:
            if sum(wanted.values()) - together.most > together.rounded:
                _refuse(wanted, blocks, params, allocate)
            return _same_in_all(kept, sum(wanted.values()), together, next(iter(sparsity.values())))
    budgets = _within(wanted, blocks, params, allocate)
    for block, bounded in blocks.items():
        if budgets[block]:
            attention = by_weight[bounded.heads.reader.tensor] if bounded.heads.units else 0.0
            share = attention * budgets[block] / wanted[block] if wanted[block] else budgets[block] / bounded.total
            left = dict(zip(("head", "channel"), bounded.kept(budgets[block], share), strict=True))
            kept |= {(block, kind): units for kind, units in left.items() if (block, kind) in kept}
    return kept


def _none(block: int, kind: str) -> Family:
    """The units of a kind that a block has none of."""
    return Family(block, kind, 0, (), 1, 0)


def _together(blocks: Sequence[_Block], params: UnitPruneParams, allocate: MethodParams) -> _Block | None:
    """Blocks that differ, as one whose units are cut out of each that has them; None where they have different numbers
    of units."""
    found: dict[str, Family] = {}
    for kind in ("head", "channel"):
        families = [family for b in blocks if (family := b.heads if kind == "head" else b.channels).units]
        if len({family.units for family in families}) > 1:
            return None
        parameters = sum(family.unit_parameters for family in families)
        found[kind] = Family(0, kind, families[0].units, (), parameters, 0) if families else _none(0, kind)
    total = sum(block.total for block in blocks)
    return _bounded(found["head"], found["channel"], total, params, allocate, asked=True)


def _same_in_all(units: Widths, budget: float, together: _Block, share: float) -> Widths:
    """As many units stay in each block that has such, so that together they lose `budget` parameters, and about `share`
    of their attention."""
    if not budget:
        return units
    heads, channels = together.kept(budget, share)
    return {(block, kind): heads if kind == "head" else channels for block, kind in units}


@dataclass(frozen=True)
class _Block:
    heads: Family
    channels: Family
    total: int
    """Parameters of its linear layers."""
    least_heads: int
    """That stay. All of them where heads may not go."""
    least_channels: int
    """A multiple of `step`, or all channels where they may not go."""
    step: int
    """Channels that stay are a multiple of it; 0 where channels may not go."""

    @property
    def like(self) -> tuple[int, ...]:
        """A key that blocks of the same shapes have in common."""
        families = (self.heads, self.channels)
        return self.total, *(size for family in families for size in (family.units, family.unit_parameters))

    @property
    def most(self) -> int:
        """Parameters it may lose."""
        return self.most_heads * self.heads.unit_parameters + self.most_channels * self.channels.unit_parameters

    @property
    def most_heads(self) -> int:
        return self.heads.units - self.least_heads

    @property
    def most_channels(self) -> int:
        return self.channels.units - self.least_channels

    @property
    def rounded(self) -> float:
        """Most parameters by which rounding to whole units misses a budget."""
        unit = self.step * self.channels.unit_parameters if self.step else self.heads.unit_parameters
        return _ROUNDED * unit

    def kept(self, budget: float, share: float) -> tuple[int, int]:
        """Heads and channels that stay, when it loses `budget` parameters and `share` of its attention's."""
        if not self.step and self.heads.units:
            share = budget / (self.heads.units * self.heads.unit_parameters)
        beyond = budget - self.rounded - self.most_channels * self.channels.unit_parameters
        least_gone = math.ceil(beyond / self.heads.unit_parameters)  # so many that channels can make up for the rest
        gone = min(self.most_heads, max(round(share * self.heads.units), least_gone))
        channels = self.channels.units
        if self.step:
            left = channels - (budget - gone * self.heads.unit_parameters) / self.channels.unit_parameters
            whole = round(left / self.step) * self.step
            channels = min(channels // self.step * self.step, max(self.least_channels, whole))
        return self.heads.units - gone, channels


def _bounded(
    heads: Family, channels: Family, total: int, params: UnitPruneParams, allocate: MethodParams, *, asked: bool
) -> _Block:
    """The least that a block keeps. Raises InvalidSpec where it must lose something and no multiple of channels
    fits."""
    step, least_heads, least_channels = 0, heads.units, channels.units
    if "head" in params.units and heads.units:
        least_heads = heads.units - most_units(heads.units, allocate.most_of_units)
    if "channel" in params.units and channels.units:
        least, multiple = channels.units - most_units(channels.units, allocate.most_of_units), params.channel_multiple
        if (lowest := math.ceil(least / multiple) * multiple) <= channels.units:
            step, least_channels = multiple, lowest
        elif asked:
            between = f", of which at least {least} must" if multiple <= channels.units else ""
            raise InvalidSpec(
                f"block {channels.block} has {channels.units} channels{between}: no multiple of {multiple} can stay",
                "lower channel_multiple" + (", or raise `most`" if between else ""),
                field="/prune/channel_multiple",
            )
    return _Block(heads, channels, total, least_heads, least_channels, step)


def most_units(units: int, most: float) -> int:
    """Most units of a family that may be removed, at most the fraction `most`; one always stays."""
    return min(units - 1, math.floor(most * units + 1e-9))  # 0.29 of 100 is 29, although their product lies below


def _within(
    wanted: Mapping[int, float], blocks: Mapping[int, _Block], params: UnitPruneParams, allocate: MethodParams
) -> Mapping[int, float]:
    """Parameters that each block loses, as many together as wanted, none more than it may but for rounding."""
    excess = {block: wanted[block] - blocks[block].most for block in blocks}
    over = {block: more for block, more in excess.items() if more > blocks[block].rounded}
    if not over:
        return wanted
    room = {block: -more for block, more in excess.items() if more < 0}
    missing, left = math.fsum(over.values()), math.fsum(room.values())
    if missing > left + math.fsum(blocks[block].rounded for block in over):
        _refuse(wanted, blocks, params, allocate)
    taken = min(1.0, missing / left) if left else 0.0
    return {block: wanted[block] + taken * room.get(block, 0.0) - over.get(block, 0.0) for block in blocks}


def _refuse(
    wanted: Mapping[int, float], blocks: Mapping[int, _Block], params: UnitPruneParams, allocate: MethodParams
) -> None:
    total = sum(bounded.total for bounded in blocks.values())
    asked, most = math.fsum(wanted.values()) / total, sum(bounded.most for bounded in blocks.values()) / total
    stays, field = "one unit of each kind stays", "/prune/units"
    hint = "lower the sparsity, let heads and channels go, or protect fewer blocks"
    if allocate.most_of_units < 1:
        stays, field = f"`most` lets at most {allocate.most_of_units:g} of a kind go", "/allocate/most"
        hint = "raise `most`, " + hint
    raise InvalidSpec(
        f"{len(blocks)} blocks cannot lose {asked:.1%} of their parameters in "
        f"{' and '.join(f'{kind}s' for kind in params.units)}, only {most:.1%}: {stays}",
        hint,
        field=field,
    )


def best_units(scores: Sequence[float], count: int) -> list[int]:
    """The `count` units of the highest scores, ascending. On ties the higher index stays."""
    order = sorted(range(len(scores)), key=lambda unit: (scores[unit], unit))
    return sorted(order[len(order) - count :])

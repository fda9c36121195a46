"""DSnoT: swaps zeros and kept weights until each output's mean is restored (Zhang et al. 2023, arXiv:2310.08915).

Dynamic Sparse no Training changes the mask alone. A row's error is what its missing weights would add to its mean
output. Each cycle brings back the missing weight that lowers it most for its spread (growing), and drops the least
important kept one whose loss lowers it too (pruning). All rows work at once.
O = output features, I = input features, K = cycles, R = rows still swapping, M = size of an N:M group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.registry import refiner

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.engine.contracts.facts import LayerTask, LinearStats

_LEAST_VARIANCE = 1e-12
"""Of an input that hardly varies; the square of the inverse still fits float32."""


class DsnotParams(MethodParams):
    """Move zeros so that every output keeps its mean; as many in every row as before."""

    method: Literal["dsnot"] = Field("dsnot", description="Training-free swaps of zeros; needs calibration data.")
    cycles: int = Field(50, ge=1, le=1000, description="Most swaps in a row of a layer.")
    threshold: float = Field(
        0.1,
        ge=0,
        le=1e9,
        description="A row whose error is at most this is left alone. The error is summed over the tokens of a "
        "calibration window, so it grows with the window's length.",
    )
    variance_power: float = Field(
        1, ge=0, le=2, description="Power of the input's variance that divides a weight's worth when growing."
    )
    same_sign: bool = Field(
        True,
        description="Refuse swaps that carry a row's error past zero or away from it. The released script never "
        "does this for unstructured masks, whatever its option says, and always for N:M.",
    )


@refiner(DsnotParams, paper="arXiv:2310.08915", needs=Stat.INPUT_SQ_MEAN | Stat.INPUT_MOMENTS)
def refine(
    layer: LayerTask, pruned_OI: Tensor, stats: LinearStats, params: DsnotParams, kept_of: tuple[int, int] | None
) -> Tensor:
    """Boolean [O, I]: which dense weights to keep, as many in every row (and group of M) as `pruned_OI` has non-zeros.

    Swaps are chosen on the dense weights, not on values that a pruner updated. A row ends when its error is
    below the threshold, no pair is left, or a swap is refused; each weight is swapped at most once.

    From the released code differ: the variance is over all tokens rather than the mean of each batch's own; a missing
    weight comes back only if that lowers the error (the code goes on with kept ones when it runs out); weights without
    effect on the mean are never swapped (the code drops some twice); with `same_sign`, an N:M swap must lower the
    error; an N:M row ends where a group has no partner left; and all layers are refined, where the code's default
    leaves the MLP's out.
    """
    import torch

    mean_I = needed(stats.input_mean_I, "Stat.INPUT_MOMENTS")
    variance_I = needed(stats.input_variance_I, "Stat.INPUT_MOMENTS")
    kept_OI = pruned_OI != 0
    weight_OI = layer.weight_OI.float()
    # What a weight adds to its row's output, summed over a window: the unit of the paper's threshold.
    effect_OI = weight_OI * (mean_I * stats.window_tokens)
    importance_OI = stats.weighted(weight_OI)
    worth_OI = effect_OI / variance_I.clamp_min(_LEAST_VARIANCE) ** params.variance_power

    count = min(params.cycles, weight_OI.shape[1])
    # Candidates in the order they are taken, for errors below zero and for those above.
    grown_O2K = torch.stack(
        [_best(sign * worth_OI, ~kept_OI & (sign * effect_OI > 0), count) for sign in (-1, 1)], dim=1
    )
    if kept_of is None:
        pruned_O2K = torch.stack(
            [_best(-importance_OI, kept_OI & (sign * effect_OI < 0), count) for sign in (-1, 1)], dim=1
        )

        def partner(rows_R: Tensor, side_R: Tensor, nth_R: Tensor, in_R: Tensor) -> Tensor:
            return pruned_O2K[rows_R, side_R, nth_R]
    else:
        m, partner_OI = kept_of[1], importance_OI.masked_fill(~kept_OI, torch.inf)

        def partner(rows_R: Tensor, side_R: Tensor, nth_R: Tensor, in_R: Tensor) -> Tensor:
            out_R = _least_of_group(partner_OI, rows_R, in_R, m)
            partner_OI[rows_R, out_R] = torch.inf  # no weight is asked for twice: a refusal ends the row
            return out_R

    return _swapped(kept_OI, effect_OI, grown_O2K, partner, params)


def _swapped(
    kept_OI: Tensor, effect_OI: Tensor, grown_O2K: Tensor, partner: Callable[..., Tensor], params: DsnotParams
) -> Tensor:
    """`kept_OI`, swapped in place: the next of `grown_O2K` is kept, the weight that `partner` returns is not."""
    error_O = effect_OI.masked_fill(kept_OI, 0).sum(dim=1)
    first_error_O = error_O.clone()
    taken_O2 = grown_O2K.new_zeros(len(kept_OI), 2)
    rows_R = (error_O.abs() > params.threshold).nonzero().flatten()
    for _ in range(grown_O2K.shape[2]):
        if len(rows_R) == 0:
            break
        error_R = error_O[rows_R]
        side_R = (error_R > 0).long()
        nth_R = taken_O2[rows_R, side_R]
        in_R = grown_O2K[rows_R, side_R, nth_R]
        out_R = partner(rows_R, side_R, nth_R, in_R)
        after_R = error_R - effect_OI[rows_R, in_R] + effect_OI[rows_R, out_R]
        swaps_R = (in_R >= 0) & (out_R >= 0)
        if params.same_sign:
            swaps_R &= (after_R * first_error_O[rows_R] >= 0) & (after_R.abs() < error_R.abs())
        rows_R, side_R, in_R, out_R, after_R = (t[swaps_R] for t in (rows_R, side_R, in_R, out_R, after_R))
        kept_OI[rows_R, in_R] = True
        kept_OI[rows_R, out_R] = False
        error_O[rows_R] = after_R
        taken_O2[rows_R, side_R] += 1
        rows_R = rows_R[after_R.abs() > params.threshold]
    return kept_OI


def _best(value_OI: Tensor, allowed_OI: Tensor, count: int) -> Tensor:
    """Columns of each row's `count` highest allowed values, best first, int64 [O, count]; -1 where they run out."""
    best = value_OI.masked_fill(~allowed_OI, -float("inf")).topk(count, dim=1)
    return best.indices.masked_fill(best.values == -float("inf"), -1)


def _least_of_group(partner_OI: Tensor, rows_R: Tensor, in_R: Tensor, m: int) -> Tensor:
    """Column of the least finite `partner` in the group of M that column `in_R` is in, int64 [R]; -1 if none is."""
    import torch

    columns_RM = (in_R - in_R % m)[:, None] + torch.arange(m, device=in_R.device)
    least = partner_OI[rows_R[:, None], columns_RM].min(dim=1)
    return (columns_RM[:, 0] + least.indices).masked_fill(least.values.isinf(), -1)

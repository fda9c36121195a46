"""MRP: the best weights beside those that go, all of a row at once (Zhao et al. 2024, arXiv:2410.15567).

O = outputs, I = inputs, R = outputs of all layers of a stream, stacked, G = groups of an N:M pattern in
a row, M = inputs of a group, Q = inputs of a group that go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Group, Stat
from workers.engine.contracts.sparsity import SparsityParams
from workers.engine.removals.weights import weight_pruner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import LayerTask, LinearStats
    from workers.engine.maths.second_order import Hessian

_BLOCK_SIZE = 128
"""Inputs that `sequential` compares with one another, SparseGPT's default."""
_TOLERANCE = 1e-6
"""Of the refit's relative residual: weights are then within about 1e-4 of the exact solution, and the output's error
within 1e-6 of the least (bookworm-7m at 70 %)."""
_LARGEST_GROUP = 8
"""`joint` tries all subsets of a group: 70 for 4:8, too many for anything larger."""


class MRPParams(SparsityParams):
    """Solve the multiple removal problem of each row: the least change of the output once its weights are chosen."""

    method: Literal["mrp"] = Field(
        "mrp", description="Choose weights by score or second-order statistics, then refit all others."
    )
    mask: Literal["sequential", "saliency", "joint"] = Field(
        "sequential",
        description="Which weights go when the spec has no score. `sequential`: those SparseGPT removes, the most "
        "accurate; `saliency`: those that cost least when each goes alone; `joint`, for N:M patterns of at most 8: of "
        "every group those that cost least when they go together.",
    )
    dampening: float = Field(
        0.01, gt=0, le=1, description="Added to the diagonal of the inputs' Gram matrix, as a fraction of its mean."
    )
    iterations: int = Field(
        200,
        ge=1,
        le=1000,
        description="Most steps of conjugate gradients for the refit, which ends at a relative residual of 1e-6: after "
        "some 40 steps where inputs are not nearly the same.",
    )

    @model_validator(mode="after")
    def _fits_the_pattern(self) -> MRPParams:
        if self.mask == "joint" and (self.kept_of is None or self.kept_of[1] > _LARGEST_GROUP):
            raise PydanticCustomError(
                "mask_mismatch",
                "`mask` `joint` needs an N:M `pattern` with groups of at most {most}",
                {"most": _LARGEST_GROUP},
            )
        return self


@weight_pruner(
    MRPParams,
    paper="arXiv:2410.15567",
    patterns=("unstructured", "N:M"),
    scores="optional",
    group="matrix",
    needs=Stat.GRAM,
    updates_weights=True,
)
def prune(layers: Sequence[LayerTask], stats: LinearStats, group: Group, params: MRPParams) -> list[Tensor]:
    """The pruned and refitted weights [O, I], float32.

    What goes is chosen by score where there is one. The rest of each row then solves least squares of the output from
    the dense weights (eq. 13: delta = -w_Q (G_QQ)^-1 G_Q: with G the inverse Hessian), written for the weights that
    stay and solved by conjugate gradients, to a relative residual of 1e-6 or as far as `iterations` lead. No row is
    worse on the calibration text than before the refit, so none is worse than SparseGPT's with `sequential`.
    Raises NumericalFailure if the statistics are not finite or cannot be factorized.
    """
    import torch

    from workers.engine.maths.second_order import hessian_of, output_error, refit, solve_columns

    gram_II = needed(stats.gram_II, "Stat.GRAM")
    hessian = hessian_of(gram_II, params.dampening, layers)
    weight_RI = torch.cat([layer.weight_OI.float() for layer in layers])
    if params.mask == "sequential" and layers[0].score_OI is None:
        stripe = _BLOCK_SIZE if params.kept_of is None else params.kept_of[1] * max(1, _BLOCK_SIZE // params.kept_of[1])
        start_RI = torch.cat(solve_columns(layers, hessian, params.kept_of, stripe))
        keep_RI = start_RI != 0
    else:
        keep_RI = ~torch.cat(_gone(layers, hessian, group, params))
        start_RI = weight_RI * keep_RI
    refit_RI = refit(start_RI, keep_RI, weight_RI @ hessian.damped_II, hessian.damped_II, params.iterations, _TOLERANCE)
    # The refit is best for the damped Hessian; the output is what counts.
    better_R = output_error(weight_RI, refit_RI, gram_II) < output_error(weight_RI, start_RI, gram_II)
    pruned_RI = torch.where(better_R[:, None], refit_RI, start_RI)
    return list(torch.split(pruned_RI, [len(layer.weight_OI) for layer in layers]))


def _gone(layers: Sequence[LayerTask], hessian: Hessian, group: Group, params: MRPParams) -> list[Tensor]:
    """Boolean [O, I] of each layer: what goes, by score or else by G."""
    from workers.engine.maths.second_order import inverse_of_unit
    from workers.engine.maths.selection import dropped

    if layers[0].score_OI is None:
        # G = F^T F: sums of squares stay positive in float32, whatever the condition of H.
        factor_II = inverse_of_unit(hessian.unit_II).div_(hessian.pivot_I.sqrt()[:, None])
        if params.mask == "joint":
            _, m = needed(params.kept_of, "an N:M pattern")
            return [_lowest_together(layer, hessian.dead_I, factor_II, m) for layer in layers]
        alone_I = factor_II.square().sum(dim=0)
        group = "matrix"  # as declared, whatever a scorer would count in
    gone = []
    for layer in layers:
        score_OI = layer.score_OI
        if score_OI is None:
            # Eq. 14, up to a factor: w^2 / G_jj. Dead inputs go first, whatever their dampening makes of them.
            score_OI = (layer.weight_OI.float().square() / alone_I).masked_fill_(hessian.dead_I, -1)
        gone.append(dropped(score_OI, layer.sparsity, group, params.kept_of))
    return gone


def _lowest_together(layer: LayerTask, dead_I: Tensor, factor_II: Tensor, m: int) -> Tensor:
    """Boolean [O, I]: of every M the Q = round(M * sparsity) that cost least together, w_Q (G_QQ)^-1 w_Q^T (eq. 11)."""
    from itertools import combinations

    import torch

    outputs = len(layer.weight_OI)
    weight_OGM = layer.weight_OI.float().masked_fill(dead_I, 0).reshape(outputs, -1, m)
    factor_IGM = factor_II.reshape(len(factor_II), -1, m)
    inverse_GMM = torch.einsum("igm,ign->gmn", factor_IGM, factor_IGM)
    best_OG = weight_OGM.new_full(weight_OGM.shape[:2], torch.inf)
    gone_OGM = torch.zeros_like(weight_OGM, dtype=torch.bool)
    for chosen in combinations(range(m), round(m * layer.sparsity)):
        q = list(chosen)
        weight_OGQ = weight_OGM[..., q]
        cost_GQQ = inverse_GMM[:, q][:, :, q].inverse()
        cost_OG = torch.einsum("ogq,gqp,ogp->og", weight_OGQ, cost_GQQ, weight_OGQ)
        lower_OG = cost_OG < best_OG
        best_OG = torch.where(lower_OG, cost_OG, best_OG)
        chosen_M = torch.tensor([i in chosen for i in range(m)], device=best_OG.device)
        gone_OGM = torch.where(lower_OG[..., None], chosen_M, gone_OGM)
    return gone_OGM.reshape(outputs, -1)

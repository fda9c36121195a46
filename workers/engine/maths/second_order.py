"""Second-order pruning (optimal brain surgeon): remove weights, and update the others to compensate.

With G the mean over tokens of x x^T, replacing W by V costs a layer (V - W) G (V - W)^T of mean squared output error,
row by row. H is G with a damped diagonal; a constant factor of H changes no result.
O = outputs of a layer, R = rows: the outputs of all layers of one input stream, stacked, I = inputs, B = inputs of a
stripe, M = inputs of an N:M group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workers.engine.errors import NumericalFailure
from workers.engine.maths.recorded import recorded
from workers.engine.maths.selection import lowest, lowest_of_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import LayerTask

_DAMPENINGS = 4
"""Most factorizations tried, each with ten times the dampening of the one before."""
_SUB_STRIPE = 16
"""Inputs solved one by one before a matrix product carries their changes on; 8 to 32 are equally fast on CPU."""


@dataclass(frozen=True)
class Hessian:
    """The damped H of one input stream, and its factors H = U D U^T, eliminated from the last input to the first."""

    damped_II: Tensor
    unit_II: Tensor
    """U: upper triangular, ones on its diagonal."""
    pivot_I: Tensor
    """The diagonal of D, > 0: the curvature along an input when all later ones are optimal. It is
    1 / [H_{j:,j:}^-1]_jj, what SparseGPT calls 1 / U_jj^2."""
    dead_I: Tensor
    """Boolean: inputs that were zero for every token. Their weights change no output and are removed first."""


def refuse_infinite(gram_II: Tensor, layers: Sequence[LayerTask]) -> None:
    """Raise NumericalFailure, with the names of the layers it is for, if a Gram matrix is not finite."""
    finite_I = gram_II.isfinite().all(dim=0)
    if not finite_I.all():
        raise NumericalFailure(
            f"{_names(layers)}: {int((~finite_I).sum())} of {len(gram_II)} inputs have statistics that are not finite",
            "The activations overflow: load the model in a type of more range, bfloat16 or float32.",
        )


def damped_gram(gram_II: Tensor, dampening: float, layers: Sequence[LayerTask]) -> Tensor:
    """H [I, I]: the Gram matrix with `dampening` times the mean of its diagonal added to the diagonal.

    Dead inputs get that mean first, and are left out of it: any positive value is correct, and this one keeps H
    well conditioned at any scale of the inputs. (SparseGPT sets them to 1 and counts that in the mean.)
    Raises NumericalFailure if the Gram matrix is not finite.
    """
    refuse_infinite(gram_II, layers)
    diagonal_I = gram_II.diagonal()
    dead_I = diagonal_I == 0
    mean = diagonal_I.sum() / (~dead_I).sum()
    mean = torch.where(dead_I.all(), 1.0, mean)
    damped_II = gram_II.clone()
    damped_II.diagonal().add_(mean * (dead_I + dampening))
    return damped_II


def hessian_of(gram_II: Tensor, dampening: float, layers: Sequence[LayerTask]) -> Hessian:
    """The damped, factorized Hessian of the layers that read these inputs.

    Tries ten times the dampening, up to three times, if H is not positive definite in float32. Raises NumericalFailure
    if the Gram matrix is not finite, or no attempt succeeds.
    """
    for attempt in range(_DAMPENINGS):
        damped_II = damped_gram(gram_II, dampening * 10**attempt, layers)
        # The lower Cholesky factor of H with all inputs in reverse order is, reversed again, R = U sqrt(D). Only R is
        # needed, where SparseGPT inverts H and factorizes the inverse.
        lower_II, failed = torch.linalg.cholesky_ex(damped_II.flip(0, 1))
        if not failed:
            factor_II = lower_II.flip(0, 1)
            root_I = factor_II.diagonal().clone()
            return Hessian(damped_II, factor_II.div_(root_I), root_I.square(), gram_II.diagonal() == 0)
    raise NumericalFailure(
        f"{_names(layers)}: the Hessian of the inputs is not positive definite, at a dampening of up to "
        f"{dampening * 10 ** (_DAMPENINGS - 1):g}",
        "Raise `dampening`, or calibrate with more or other text.",
    )


def without_inputs(weight_OI: Tensor, kept_I: Tensor, damped_II: Tensor) -> Tensor:
    """W_K + W_P H_PK H_KK^-1, and zero in P: of all weights that read only the inputs of the boolean `kept_I`, K, those
    of the least output error, without the others, P. It is the optimal brain surgeon's update for all P at once."""
    lower_KK = torch.linalg.cholesky(damped_II[kept_I][:, kept_I])
    change_KO = torch.cholesky_solve(damped_II[kept_I][:, ~kept_I] @ weight_OI[:, ~kept_I].T, lower_KK)
    made_up_OI = torch.zeros_like(weight_OI)
    made_up_OI[:, kept_I] = weight_OI[:, kept_I] + change_KO.T
    return made_up_OI


def cut_inputs(reader: LayerTask, kept_I: Tensor, gram_II: Tensor | None, dampening: float) -> Tensor:
    """The weight [O, I] of a layer without inputs, float32: zero in those that are not in the boolean `kept_I`, the
    others as `without_inputs` says, by the Gram matrix of the inputs; as they were where that is None, or all stay.

    Raises NumericalFailure if the matrix cannot be factorized.
    """
    weight_OI = reader.weight_OI.float()
    if gram_II is None or bool(kept_I.all()):
        return weight_OI * kept_I
    return without_inputs(weight_OI, kept_I, hessian_of(gram_II, dampening, [reader]).damped_II)


def _names(layers: Sequence[LayerTask]) -> str:
    return ", ".join(layer.name for layer in layers)


def solve_columns(
    layers: Sequence[LayerTask], hessian: Hessian, kept_of: tuple[int, int] | None, stripe: int
) -> list[Tensor]:
    """SparseGPT's solve: the pruned weights, float32, in the order of `layers` (Frantar and Alistarh 2023, alg. 1).

    Inputs are processed from first to last, and all later ones compensate for removed weights. Unstructured: in each
    `stripe` of inputs the weights of the lowest w^2 D_jj of a layer go, at the weights as they stand when the stripe
    begins, and as many as it takes to have removed round(O * end * sparsity) when the stripe ends. N:M: in each group
    the round(M * sparsity) lowest go, at the weights as they stand when the group begins; `stripe`, a multiple of M,
    then only matters for speed.

    The rows of all layers are solved together. The paper carries what goes from each stripe to all later weights, with
    the factor of the inverse of H. With v the pruned weights before a stripe S, its weights are also
    w_S + (w - v) U_{<S,S} U_SS^-1, which takes one matrix product a stripe and no inverse of H.
    """
    weight_IR = torch.cat([layer.weight_OI.float() for layer in layers]).T.contiguous()
    change_IR = torch.empty_like(weight_IR)
    solver: _Stripe | None = None
    for begin in range(0, len(weight_IR), stripe):
        inputs = slice(begin, begin + stripe)
        spread_BB = inverse_of_unit(hessian.unit_II[inputs, inputs])
        before_BR = hessian.unit_II[:begin, inputs].T @ change_IR[:begin]
        if solver is None or solver.size != len(spread_BB):  # the last stripe may be a smaller one
            solver = _Stripe(layers, kept_of, spread_BB, before_BR)
        torch.addmm(weight_IR[inputs], spread_BB.T, before_BR, out=solver.now_BR)
        solver.solve(spread_BB, hessian, begin)
        torch.sub(weight_IR[inputs], solver.now_BR, out=change_IR[inputs])
        weight_IR[inputs] = solver.now_BR
    return [part_IO.T.contiguous() for part_IO in _by_layer(weight_IR, layers)]


def inverse_of_unit(unit_BB: Tensor) -> Tensor:
    """Inverse of an upper triangular matrix with ones on its diagonal, such as U or a diagonal block of it."""
    eye_BB = torch.eye(len(unit_BB), device=unit_BB.device)
    inverse_BB: Tensor = torch.linalg.solve_triangular(unit_BB, eye_BB, upper=True, unitriangular=True)
    return inverse_BB


class _Stripe:
    """Tensors and steps that all stripes of a solve share."""

    def __init__(
        self, layers: Sequence[LayerTask], kept_of: tuple[int, int] | None, spread_BB: Tensor, like_BR: Tensor
    ) -> None:
        """For stripes of the sizes of `spread_BB` and `like_BR`."""
        self.size, self._layers, self._kept_of = len(spread_BB), layers, kept_of
        self.now_BR = torch.empty_like(like_BR)
        """The weights, to begin with; in the end the pruned ones."""
        # Numbers, not booleans: multiplying by them is what the loop over single inputs does.
        self._gone_BR, self._lost_BR = torch.zeros_like(like_BR), torch.zeros_like(like_BR)
        self._spread_BB = torch.zeros_like(spread_BB)
        self._pivot_B1 = spread_BB.new_zeros(self.size, 1)
        self._dead_B1 = torch.zeros_like(self._pivot_B1, dtype=torch.bool)
        self._replay = recorded(self._solve, like_BR.device)

    def solve(self, spread_BB: Tensor, hessian: Hessian, begin: int) -> None:
        """Turn the weights of a stripe into its pruned weights. `begin` is its first input; a weight that goes from
        input i changes that of a later input j by `-spread_BB[i, j]` of itself."""
        inputs = slice(begin, begin + self.size)
        self._spread_BB.copy_(spread_BB)
        self._pivot_B1.copy_(hessian.pivot_I[inputs, None])
        self._dead_B1.copy_(hessian.dead_I[inputs, None])
        if self._kept_of is None:
            saliency_BR = _saliency(self.now_BR, self._pivot_B1, self._dead_B1)
            self._gone_BR.copy_(_lowest_of_stripe(saliency_BR, self._layers, begin))
        (self._replay or self._solve)()

    def _solve(self) -> None:
        """The loop over the inputs, and groups of them, of any stripe."""
        now_BR, lost_BR, gone_BR, spread_BB = self.now_BR, self._lost_BR, self._gone_BR, self._spread_BB
        step = _SUB_STRIPE if self._kept_of is None else self._kept_of[1]
        for first in range(0, self.size, step):
            last = min(first + step, self.size)
            part = slice(first, last)
            if first:
                now_BR[part].addmm_(spread_BB[:first, part].T, lost_BR[:first], alpha=-1)
            if self._kept_of is not None:
                saliency_MR = _saliency(now_BR[part], self._pivot_B1[part], self._dead_B1[part])
                gone_BR[part] = _lowest_of_group(saliency_MR, self._layers)
            for j in range(first, last):
                if j > first:
                    now_BR[j].addmv_(lost_BR[first:j].T, spread_BB[first:j, j], alpha=-1)
                torch.mul(now_BR[j], gone_BR[j], out=lost_BR[j])
            now_BR[part] -= lost_BR[part]


def _saliency(now_BR: Tensor, pivot_B1: Tensor, dead_B1: Tensor) -> Tensor:
    """Increase of the output error when a weight is removed and later ones compensate, times a constant; -1 if dead."""
    return (now_BR.square() * pivot_B1).masked_fill_(dead_B1, -1)


def _lowest_of_stripe(saliency_BR: Tensor, layers: Sequence[LayerTask], begin: int) -> Tensor:
    end = begin + len(saliency_BR)
    parts = []
    for saliency_BO, layer in zip(_by_layer(saliency_BR, layers), layers, strict=True):
        outputs = len(layer.weight_OI)
        count = round(outputs * end * layer.sparsity) - round(outputs * begin * layer.sparsity)
        parts.append(lowest(saliency_BO.reshape(1, -1), count).reshape(saliency_BO.shape))
    return torch.cat(parts, dim=1)


def _lowest_of_group(saliency_MR: Tensor, layers: Sequence[LayerTask]) -> Tensor:
    counts = [round(len(saliency_MR) * layer.sparsity) for layer in layers]
    if len({*counts}) == 1:
        return lowest_of_groups(saliency_MR.T, counts[0]).T
    parts = zip(_by_layer(saliency_MR, layers), counts, strict=True)
    return torch.cat([lowest_of_groups(saliency_MO.T, count).T for saliency_MO, count in parts], dim=1)


def _by_layer(stacked_BR: Tensor, layers: Sequence[LayerTask]) -> Sequence[Tensor]:
    return torch.split(stacked_BR, [len(layer.weight_OI) for layer in layers], dim=1)


def output_error(weight_OI: Tensor, pruned_OI: Tensor, gram_II: Tensor) -> Tensor:
    """Mean over tokens of ((W - V) x)^2, of each output, float64 [O]; their sum is tr((W - V) G (W - V)^T)."""
    change_OI = weight_OI.double() - pruned_OI.double()
    return ((change_OI @ gram_II.double()) * change_OI).sum(dim=1)


def refit(
    start_RI: Tensor, keep_RI: Tensor, target_RI: Tensor, matrix_II: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """The V on a support that makes tr(V H V^T) - 2 tr(V B^T) least: V H = B where `keep_RI`, V = 0 elsewhere.

    B is `target_RI`, and H is `matrix_II`, positive definite; for the weights W of a layer, B = W H. From the start,
    which must be zero outside the support, by at most `iterations` of conjugate gradients, preconditioned with the
    diagonal; each row on its own stops when its residual is `tolerance` of B's, both in the norm of the inverse
    diagonal. One matrix product an iteration, for all rows. Never leaves its type: float32 in, float32 out, which
    reaches 1e-7 on well-conditioned matrices.
    """
    keep_RI = keep_RI.to(start_RI.dtype)
    inverse_I = 1 / matrix_II.diagonal()
    enough_R = tolerance**2 * ((target_RI * keep_RI).square() @ inverse_I)
    residual_RI = (target_RI - start_RI @ matrix_II) * keep_RI
    direction_RI = residual_RI * inverse_I
    size_R = residual_RI.square() @ inverse_I
    solved_RI, found_RI = start_RI.clone(), start_RI
    rows = torch.arange(len(start_RI), device=start_RI.device)
    for _ in range(iterations):
        open_R = size_R > enough_R
        unsolved = int(open_R.sum())
        if unsolved == 0:
            break
        # Rows that are done take no further steps. Leaving them out is worth a copy of the others when they are many.
        if 2 * unsolved < len(rows):
            solved_RI[rows] = found_RI
            rows, enough_R, size_R = rows[open_R], enough_R[open_R], size_R[open_R]
            keep_RI, residual_RI, direction_RI = keep_RI[open_R], residual_RI[open_R], direction_RI[open_R]
            found_RI, open_R = found_RI[open_R], open_R[open_R]
        image_RI = (direction_RI @ matrix_II) * keep_RI
        bend_R = (direction_RI * image_RI).sum(dim=1)
        # Rounding can leave a direction of no curvature; its row then stays where it is.
        step_R1 = torch.where(open_R & (bend_R > 0), size_R / bend_R, 0)[:, None]
        found_RI = found_RI + step_R1 * direction_RI
        residual_RI = residual_RI - step_R1 * image_RI
        before_R, size_R = size_R, residual_RI.square() @ inverse_I
        turn_R1 = torch.where(before_R > 0, size_R / before_R, 0)[:, None]
        direction_RI = residual_RI * inverse_I + turn_R1 * direction_RI
    solved_RI[rows] = found_RI
    return solved_RI

"""The tail exponent of a weight matrix's spectrum (AlphaPruning, Lu et al. 2024, arXiv:2410.10912).

The eigenvalues are those of WᵀW: squared singular values. The largest of a trained matrix follow a power law with
exponent alpha: the smaller alpha, the heavier the tail. O = outputs, I = inputs; L >= N = longer and smaller side of
a matrix; N also counts eigenvalues; C = candidates for the start of the tail; K = eigenvalues compared at.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

LowerBound = Literal["fixed", "compat"]

LARGEST_ALPHA = 100.0
"""Alpha of a matrix whose eigenvalues are all equal would be infinite. Trained ones stay below 10."""
GPU_SIDE = 512
"""Smaller side of a matrix from which on it stays on its GPU: below, launches take more time there than the arithmetic.
Reckoned, not measured; decided by size alone, so that the same job takes the same way everywhere."""
_STACKED_BYTES = 2**31
"""Of the Gram matrices that a GPU holds at once."""
R = TypeVar("R")
_ZERO = 1e-12
"""Eigenvalues up to this fraction of the largest are left out: zeros, but for rounding."""
NOISE = 1e-6
"""Absolute error, at most, of a Gram matrix's eigenvalues in float32, as a fraction of the largest."""
_BINS = 100
_COARSE = (256, 4096)
"""Numbers of eigenvalues that candidates are compared on before all are used."""
_CHUNK = 2**20
"""Most entries in memory at once while candidates are compared."""


def eigenvalues(matrix_OI: Tensor) -> Tensor:
    """Eigenvalues of the Gram matrix of the smaller side, ascending, positive, float64 [<= N] on the CPU.

    Half the work of singular values. The Gram matrix squares the condition, so small eigenvalues are noise in float32.
    That matters for the very smallest alone, on which all bins of `alpha_peak` hang: it is found again, accurately.
    Where many are noise, or the rank is not full, everything is done in float64.
    """
    tall_LN = _tall(matrix_OI)
    found_N: Tensor = torch.linalg.eigvalsh(tall_LN.T @ tall_LN).cpu().double()
    return _without_noise(found_N, tall_LN)


def eigenvalues_of(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`eigenvalues` of each: on a CPU one matrix a thread, on a GPU those of one size together.

    From a GPU those whose smaller side is below GPU_SIDE go to the CPU.
    """
    return of_each(eigenvalues, matrices) if matrices[0].is_cpu else stacked_eigenvalues(matrices)


def stacked_eigenvalues(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`eigenvalues_of` a GPU's matrices."""
    found: dict[int, Tensor] = {}
    by_size: dict[int, list[int]] = {}
    for index, matrix_OI in enumerate(matrices):
        by_size.setdefault(min(matrix_OI.shape), []).append(index)
    for size, indices in by_size.items():
        if size < GPU_SIDE:
            small = of_each(eigenvalues, [matrices[index].cpu() for index in indices])
            found |= zip(indices, small, strict=True)
            continue
        at_once = max(1, _STACKED_BYTES // (4 * size * size))
        for begin in range(0, len(indices), at_once):
            part = indices[begin : begin + at_once]
            grams_BNN = torch.stack([tall_LN.T @ tall_LN for tall_LN in (_tall(matrices[i]) for i in part)])
            values_BN = torch.linalg.eigvalsh(grams_BNN).cpu().double()
            del grams_BNN
            for index, values_N in zip(part, values_BN, strict=True):
                found[index] = _without_noise(values_N, _tall(matrices[index]))
    return [found[index] for index in range(len(matrices))]


def _tall(matrix_OI: Tensor) -> Tensor:
    """Float32, the longer side first."""
    return matrix_OI.float() if matrix_OI.shape[0] >= matrix_OI.shape[1] else matrix_OI.float().T


def _without_noise(found_N: Tensor, tall_LN: Tensor) -> Tensor:
    """The eigenvalues that were found in float32, mended where that does not tell them."""
    noise = NOISE * float(found_N[-1])
    if found_N[0] <= 10 * noise:
        smallest = _smallest_eigenvalue(tall_LN)
        if smallest <= _ZERO * found_N[-1] or (found_N < noise).sum() > len(found_N) / 20:
            exact_LN = tall_LN.double()
            found_N = torch.linalg.eigvalsh(exact_LN.T @ exact_LN).cpu()
        else:
            found_N.clamp_(min=smallest)[0] = smallest
    return found_N[found_N > _ZERO * found_N[-1]]


def _smallest_eigenvalue(tall_LN: Tensor) -> float:
    """The smallest eigenvalue of the Gram matrix; 0.0 if its square root is lost in float32 too.

    Inverse iteration on a few vectors with a triangular factor of the matrix itself, whose condition is not squared.
    """
    triangle_NN = torch.linalg.qr(tall_LN, mode="r").R
    diagonal_N = triangle_NN.diagonal().abs()
    if diagonal_N.min() <= _ZERO**0.5 * diagonal_N.max():
        return 0.0
    size = len(diagonal_N)
    basis = torch.randn(size, min(8, size), generator=torch.Generator().manual_seed(0)).to(tall_LN.device)
    for _ in range(4):
        halfway = torch.linalg.solve_triangular(triangle_NN.T, torch.linalg.qr(basis).Q, upper=False)
        basis = torch.linalg.solve_triangular(triangle_NN, halfway, upper=True)
    return float(torch.linalg.matrix_norm(halfway, 2)) ** -2


def window_eigenvalues(matrix_OI: Tensor, *, side: int, count: int) -> Tensor:
    """Eigenvalues of square windows slid over the matrix, pooled, ascending, float64: FARMS (Hu et al. 2025,
    arXiv:2506.06280). Makes spectra of differently shaped matrices comparable.

    Windows of min(side, O, I); in each direction `count` evenly spaced positions, or all where there are fewer.
    """
    side = min(side, *matrix_OI.shape)
    rows, columns = (_starts(size - side, count) for size in matrix_OI.shape)
    windows = [matrix_OI[row : row + side, column : column + side] for row in rows for column in columns]
    return torch.cat(eigenvalues_of(windows)).sort().values


def _starts(room: int, count: int) -> range:
    """Where windows begin: the first `count` multiples of a whole step, as released."""
    step = max(1, room // (count - 1))
    return range(0, min(room + 1, step * count), step)


def alpha_mid(eigenvalues_N: Tensor) -> float:
    """Hill's estimate of alpha > 1 with the upper half as the tail; at most LARGEST_ALPHA, also for no eigenvalues."""
    if not len(eigenvalues_N):
        return LARGEST_ALPHA
    return _bounded(_hill(eigenvalues_N.log())[len(eigenvalues_N) // 2])


def alpha_peak(eigenvalues_N: Tensor, lower_bound: LowerBound) -> float:
    """Hill's estimate where the tail, begun near the peak of the spectrum, is nearest to a power law. As `alpha_mid`.

    The peak is the left edge x of the fullest of 100 bins of log10. Tails may begin at eigenvalues up to 1.5 x, and
    from 0.95 x (`fixed`) or, as in the released code, log10(0.95 x) (`compat`), which for most weights is no bound.
    Discontinuous: a tiny change of the weights can move the start. Without a candidate it is `alpha_mid`.
    """
    if not len(eigenvalues_N):
        return LARGEST_ALPHA
    single_N = eigenvalues_N.float()  # bins and bounds as in the released code, to the last bit
    logs_N = single_N.log10()
    lowest, highest = logs_N.min(), logs_N.max()
    counts = torch.histc(logs_N, _BINS, min=float(lowest), max=float(highest))
    peak = 10 ** torch.linspace(float(lowest), float(highest), _BINS + 1)[counts.argmax()]
    least = 0.95 * peak
    if lower_bound == "compat":
        least = least.log10()
    candidates_C = ((single_N[:-1] >= least) & (single_N[:-1] <= 1.5 * peak)).nonzero().flatten()
    if not len(candidates_C):
        return alpha_mid(eigenvalues_N)
    log_N = eigenvalues_N.log()
    alpha_N = _hill(log_N)
    every_K = torch.arange(len(log_N))
    for points in _COARSE:
        # The distance on some of the eigenvalues bounds that on all from below: most candidates need no more.
        bound_C = _distances(log_N, alpha_N, candidates_C, every_K[:: max(1, len(log_N) // points)])
        best = _distances(log_N, alpha_N, candidates_C[bound_C.argmin()][None], every_K)
        candidates_C = candidates_C[bound_C <= best + 1e-12]
    return _bounded(alpha_N[candidates_C[_distances(log_N, alpha_N, candidates_C, every_K).argmin()]])


def _hill(log_N: Tensor) -> Tensor:
    """Alpha [N] of the tail that begins at each eigenvalue; counts that one too, as the released code does."""
    size_N = torch.arange(len(log_N), 0, -1)
    excess_N = log_N.flip(0).cumsum(0).flip(0) - size_N * log_N
    return 1 + size_N / excess_N.clamp(min=1e-9)


def _distances(log_N: Tensor, alpha_N: Tensor, candidates_C: Tensor, at_K: Tensor) -> Tensor:
    """Kolmogorov-Smirnov distance [C] of the tail from each candidate on to its power law, seen at some eigenvalues."""
    found = []
    for start_C in torch.split(candidates_C, max(1, _CHUNK // len(at_K))):
        at = at_K[at_K >= start_C[0]]
        rank_CK = at - start_C[:, None]
        ratio_CK = log_N[at] - log_N[start_C, None]
        survival_CK = ((1 - alpha_N[start_C, None]) * ratio_CK.clamp(min=0)).exp()
        gap_CK = (1 - survival_CK - rank_CK / (len(log_N) - start_C[:, None])).abs()
        found.append(gap_CK.masked_fill(rank_CK < 0, 0).amax(dim=1))
    return torch.cat(found)


def _bounded(alpha: Tensor) -> float:
    return min(float(alpha), LARGEST_ALPHA)


def of_each(function: Callable[[Tensor], R], matrices: Sequence[Tensor]) -> list[R]:
    """`function` of every matrix: on a CPU one matrix per thread, as LAPACK gains little from several."""
    threads = torch.get_num_threads()
    if threads == 1 or matrices[0].device.type != "cpu":
        return [function(matrix) for matrix in matrices]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, matrices))
    finally:
        torch.set_num_threads(threads)

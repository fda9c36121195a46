"""Eigenvalues against singular values, and alpha against spectra whose exponent is known.

O = outputs, I = inputs, N = eigenvalues.
"""

from __future__ import annotations

import math
import threading

import pytest
import torch
from torch import Tensor

from workers.engine.maths import spectrum
from workers.engine.maths.spectrum import (
    LARGEST_ALPHA,
    LowerBound,
    alpha_mid,
    alpha_peak,
    eigenvalues,
    of_each,
    stacked_eigenvalues,
    window_eigenvalues,
)

BOUNDS: tuple[LowerBound, ...] = ("fixed", "compat")


def heavy_tailed(outputs: int, inputs: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    """Noise plus a few strong directions, as in trained weights."""
    generator = torch.Generator().manual_seed(seed)
    noise_OI = torch.randn(outputs, inputs, generator=generator) * torch.randn(inputs, generator=generator).exp()
    strong_OI = torch.randn(outputs, 8, generator=generator) @ torch.randn(8, inputs, generator=generator)
    return scale * (noise_OI + strong_OI)


def with_singular_values(values_N: Tensor) -> Tensor:
    """A square float32 matrix with these singular values, in random directions."""
    generator = torch.Generator().manual_seed(1)
    size = len(values_N)
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q for _ in range(2))
    return ((left * values_N.double()) @ right).float()


def pareto(alpha: float, count: int) -> Tensor:
    """The quantiles of a density that falls as x^-alpha from x = 1 on: survival x^(1 - alpha)."""
    return ((torch.arange(count, dtype=torch.float64) + 0.5) / count).neg().add(1) ** (1 / (1 - alpha))


class TestEigenvalues:
    def test_by_hand(self) -> None:
        # Rows of lengths 5 and 2 at right angles.
        assert eigenvalues(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, -2.0]])).tolist() == pytest.approx([4, 25])

    @pytest.mark.parametrize("shape", [(96, 96), (128, 48), (48, 128)])
    def test_are_the_squared_singular_values(self, shape: tuple[int, int]) -> None:
        matrix_OI = heavy_tailed(*shape)
        exact_N = torch.linalg.svdvals(matrix_OI.double()).square().flip(0)
        found_N = eigenvalues(matrix_OI)
        big_N = exact_N > 1e-4 * exact_N[-1]
        # Float32 errs by some 1e-7 of the largest: by 1e-3 of one that is 1e-4 of it.
        torch.testing.assert_close(found_N[big_N], exact_N[big_N], rtol=1e-3, atol=0)

    def test_the_smallest_is_accurate_beyond_float32(self) -> None:
        # 1e-10 of the largest, where the Gram matrix in float32 knows 1e-7.
        matrix_OI = with_singular_values(torch.cat([torch.tensor([1e-5]), torch.linspace(0.01, 1, 63)]))
        assert float(eigenvalues(matrix_OI)[0]) == pytest.approx(1e-10, rel=0.02)

    def test_many_small_ones_are_all_accurate(self) -> None:
        # A third below float32's noise: 1e-10 ... 1e-7.
        values_N = torch.logspace(-5, 0, 64, dtype=torch.float64)
        exact_N = torch.linalg.svdvals(with_singular_values(values_N).double()).square().flip(0)
        torch.testing.assert_close(eigenvalues(with_singular_values(values_N)), exact_N, rtol=1e-3, atol=0)

    def test_zeros_are_left_out(self) -> None:
        generator = torch.Generator().manual_seed(0)
        matrix_OI = torch.randn(40, 5, generator=generator) @ torch.randn(5, 30, generator=generator)
        # Rounding the product to float32 leaves "zeros" of (1e-7)² = 1e-14 of the largest.
        assert len(eigenvalues(matrix_OI)) == 5
        assert len(eigenvalues(torch.zeros(4, 6))) == 0

    def test_leaves_its_input_alone_and_takes_half_precision(self) -> None:
        matrix_OI = heavy_tailed(20, 30).bfloat16()
        kept_OI = matrix_OI.clone()
        assert torch.equal(eigenvalues(matrix_OI), eigenvalues(matrix_OI.float()))
        assert torch.equal(matrix_OI, kept_OI)


@pytest.mark.parametrize("at_once", [1, 2, 10])
def test_stacked_matrices_have_the_eigenvalues_of_each(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide and tall ones of one size, one of another, one that stays small, one without full rank."""
    monkeypatch.setattr(spectrum, "GPU_SIDE", 40)
    monkeypatch.setattr(spectrum, "_STACKED_BYTES", at_once * 4 * 48 * 48)
    shapes = [(96, 48), (48, 48), (64, 64), (48, 120), (90, 20)]
    matrices = [heavy_tailed(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    matrices.append(torch.outer(matrices[0][:, 0], matrices[1][0]))
    found = stacked_eigenvalues(matrices)
    assert len(found) == len(matrices)
    for values_N, matrix_OI in zip(found, matrices, strict=True):
        torch.testing.assert_close(values_N, eigenvalues(matrix_OI), rtol=1e-3, atol=0)
        assert (values_N.dtype, values_N.device.type) == (torch.float64, "cpu")


class TestWindows:
    def test_by_hand(self) -> None:
        # Windows of 1 x 1 at 2 x 2 of 3 x 3 positions, two apart: the corners, squared.
        matrix_OI = torch.arange(1.0, 10).reshape(3, 3)
        assert window_eigenvalues(matrix_OI, side=1, count=2).tolist() == pytest.approx([1, 9, 49, 81])

    def test_a_square_matrix_no_larger_than_a_window_is_one_window(self) -> None:
        matrix_OI = heavy_tailed(32, 32)
        assert torch.equal(window_eigenvalues(matrix_OI, side=2000, count=10), eigenvalues(matrix_OI))

    @pytest.mark.parametrize(("longer", "windows"), [(33, 2), (40, 9), (50, 10), (96, 10)])
    def test_as_many_as_asked_for_or_as_fit(self, longer: int, windows: int) -> None:
        assert len(window_eigenvalues(heavy_tailed(longer, 32), side=2000, count=10)) == 32 * windows


class TestAlpha:
    def test_mid_by_hand(self) -> None:
        # The tail is 4, 8, 16: 3 of them, over ln(4/4) + ln(8/4) + ln(16/4) = 3 ln 2.
        found = alpha_mid(torch.tensor([1.0, 2.0, 3.0, 4.0, 8.0, 16.0], dtype=torch.float64))
        assert found == pytest.approx(1 + 3 / (3 * math.log(2)))

    @pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 5.0])
    def test_mid_finds_the_exponent_of_a_power_law(self, alpha: float) -> None:
        # Beyond its middle a power law is the same power law. Of 50,000 values the estimate errs by a few 1e-4.
        assert alpha_mid(pareto(alpha, 100_000)) == pytest.approx(alpha, rel=5e-3)

    @pytest.mark.parametrize("alpha", [2.0, 3.0])
    @pytest.mark.parametrize("bound", BOUNDS)
    def test_peak_finds_the_exponent_of_a_power_law(self, alpha: float, bound: LowerBound) -> None:
        assert alpha_peak(pareto(alpha, 4000), bound) == pytest.approx(alpha, abs=0.05)

    def test_peak_finds_the_tail_behind_a_bulk(self) -> None:
        """A bulk of 0.1 ... 1 in front of a tail from 1 on: half of the spectrum would mix the two."""
        bulk_N = torch.logspace(-1, 0, 1500, dtype=torch.float64)
        found_N = torch.cat([bulk_N, pareto(3.0, 500)]).sort().values
        assert alpha_peak(found_N, "compat") == pytest.approx(3, abs=0.1)
        assert abs(alpha_mid(found_N) - 3) > 0.5

    @pytest.mark.parametrize("bound", BOUNDS)
    @pytest.mark.parametrize("seed", range(3))
    def test_peak_is_the_nearest_of_all_candidates(self, bound: LowerBound, seed: int) -> None:
        """Against the definition, candidate by candidate: leaving some out early changes nothing."""
        found_N = torch.cat([eigenvalues(heavy_tailed(320, 300, seed=10 * seed + i)) for i in range(4)]).sort().values
        assert alpha_peak(found_N, bound) == pytest.approx(peak_by_definition(found_N, bound), rel=1e-9)

    @pytest.mark.parametrize("seed", [3, 4, 10])
    def test_peak_is_right_where_a_coarse_look_is_not(self, seed: int) -> None:
        """Samples of a power law in which another start than the nearest seems the nearest on every fifth value."""
        sample_N = torch.rand(1500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found_N = (1 / sample_N).sort().values
        assert alpha_peak(found_N, "compat") == pytest.approx(peak_by_definition(found_N, "compat"), rel=1e-9)

    @pytest.mark.parametrize("seed", range(4))
    def test_scale_and_orientation_do_not_matter(self, seed: int) -> None:
        matrix_OI = heavy_tailed(96, 80, seed=seed)
        plain, turned, large = (eigenvalues(m) for m in (matrix_OI, matrix_OI.T, 256 * matrix_OI))
        for metric in (alpha_mid, lambda found_N: alpha_peak(found_N, "fixed")):
            assert metric(turned) == pytest.approx(metric(plain), rel=1e-4)
            assert metric(large) == pytest.approx(metric(plain), rel=1e-4)

    def test_only_the_fixed_bound_keeps_the_tail_near_the_peak(self) -> None:
        """A power law from 1 on with a crowd at 5 to 9, the peak: the law fits best from below the crowd, at alpha 2
        but for the crowd; from 0.95 x 5 on the crowd is half of the tail."""
        crowd_N = torch.cat([torch.full((200,), 5.0), torch.linspace(5, 9, 200)]).double()
        found_N = torch.cat([pareto(2.0, 2000), crowd_N]).sort().values
        assert alpha_peak(found_N, "compat") == pytest.approx(2, abs=0.15)
        assert alpha_peak(found_N, "fixed") > 2.3
        for bound in BOUNDS:
            assert alpha_peak(found_N, bound) == pytest.approx(peak_by_definition(found_N, bound), rel=1e-9)

    @pytest.mark.parametrize("values", [[], [2.0], [2.0, 2.0, 2.0, 2.0]])
    def test_a_spectrum_without_a_tail_has_the_largest_alpha(self, values: list[float]) -> None:
        found_N = torch.tensor(values, dtype=torch.float64)
        assert alpha_mid(found_N) == LARGEST_ALPHA
        assert alpha_peak(found_N, "fixed") == LARGEST_ALPHA

    def test_without_candidates_peak_is_mid(self) -> None:
        # A bin is a fifth of a decade. The last holds three and begins at 0.63; none is below 1.5 times that, 0.946.
        found_N = torch.tensor([1e-20, 0.96, 0.97, 1.0], dtype=torch.float64)
        assert alpha_peak(found_N, "fixed") == pytest.approx(1 + 2 / math.log(1 / 0.97))


def peak_by_definition(found_N: Tensor, bound: LowerBound) -> float:
    log_N = found_N.float().log10()
    counts = torch.histc(log_N, 100, min=float(log_N.min()), max=float(log_N.max()))
    peak = 10 ** float(torch.linspace(float(log_N.min()), float(log_N.max()), 101)[counts.argmax()])
    least = 0.95 * peak if bound == "fixed" else math.log10(0.95 * peak)
    best, nearest = 0.0, math.inf
    for i in range(len(found_N) - 1):
        if least <= found_N[i] <= 1.5 * peak:
            tail_T = found_N[i:] / found_N[i]
            alpha = 1 + len(tail_T) / float(tail_T.log().sum())
            distance = float((1 - tail_T ** (1 - alpha) - torch.arange(len(tail_T)) / len(tail_T)).abs().max())
            if distance < nearest:
                best, nearest = alpha, distance
    return best


def test_of_each_keeps_the_order_and_the_threads() -> None:
    matrices = [torch.full((1, 1), float(i)) for i in range(20)]
    seen = set()

    def value(matrix_OI: Tensor) -> float:
        seen.add(threading.get_ident())
        return float(matrix_OI)

    torch.set_num_threads(2)
    assert of_each(value, matrices) == [float(i) for i in range(20)]
    assert torch.get_num_threads() == 2
    assert threading.get_ident() not in seen
    with pytest.raises(ZeroDivisionError):
        of_each(lambda matrix_OI: 1 / 0, matrices)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert of_each(value, matrices[:3]) == [0, 1, 2]
    assert threading.get_ident() in seen

"""The optimal brain surgeon's maths against hand-made cases, the paper's algorithm and least squares.

O = outputs, I = inputs, T = tokens.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from workers.engine.contracts.facts import LayerTask
from workers.engine.errors import NumericalFailure
from workers.engine.maths.second_order import damped_gram, hessian_of, output_error, refit, solve_columns


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(inputs: int, tokens: int = 400) -> Tensor:
    """[T, I], each input of its own scale and correlated with all others."""
    return normal(tokens, inputs, seed=1) @ (torch.eye(inputs) + 0.5 * normal(inputs, inputs, seed=2) / inputs**0.5)


def gram_of(inputs_TI: Tensor) -> Tensor:
    return inputs_TI.T @ inputs_TI / len(inputs_TI)


def task(weight_OI: Tensor, sparsity: float, name: str = "layer") -> LayerTask:
    return LayerTask(name, weight_OI, sparsity)


def by_the_book(
    weight_OI: Tensor, gram_II: Tensor, sparsity: float, kept_of: tuple[int, int] | None, stripe: int
) -> Tensor:
    """SparseGPT's algorithm 1 as printed, float64: the factor of the inverse, column by column, sorted, one layer."""
    w_OI, (outputs, inputs) = weight_OI.double(), weight_OI.shape
    factor_II = torch.linalg.cholesky(damped_gram(gram_II, 0.01, []).double().inverse(), upper=True)
    score_of = lambda columns: w_OI[:, columns].square() / factor_II.diagonal()[columns] ** 2  # noqa: E731
    gone_OI = torch.zeros(outputs, inputs, dtype=torch.bool)
    for j in range(inputs):
        if kept_of is not None and j % kept_of[1] == 0:
            order = score_of(slice(j, j + kept_of[1])).argsort(dim=1)[:, : round(kept_of[1] * sparsity)]
            gone_OI[:, j : j + kept_of[1]].scatter_(1, order, True)
        if kept_of is None and j % stripe == 0:
            end = min(j + stripe, inputs)
            count = round(outputs * end * sparsity) - round(outputs * j * sparsity)
            lowest = score_of(slice(j, end)).flatten().argsort()[:count]
            gone_OI[:, j:end] = (
                torch.zeros(outputs * (end - j), dtype=torch.bool).index_fill(0, lowest, True).reshape(outputs, -1)
            )
        lost_O = w_OI[:, j] * gone_OI[:, j] / factor_II[j, j]
        w_OI[:, j:] -= lost_O[:, None] * factor_II[j, j:]
        w_OI[:, j].masked_fill_(gone_OI[:, j], 0)
    return w_OI


class TestHessian:
    def test_is_the_product_of_its_factors(self) -> None:
        hessian = hessian_of(gram_of(correlated_inputs(30)), 0.01, [])
        product_II = hessian.unit_II @ hessian.pivot_I.diag() @ hessian.unit_II.T
        torch.testing.assert_close(product_II, hessian.damped_II)
        assert torch.equal(hessian.unit_II, hessian.unit_II.triu())
        assert torch.equal(hessian.unit_II.diagonal(), torch.ones(30))

    def test_has_the_pivots_of_the_released_codes_route(self) -> None:
        hessian = hessian_of(gram_of(correlated_inputs(30)), 0.01, [])
        upper_II = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian.damped_II)), upper=True)
        torch.testing.assert_close(hessian.pivot_I, upper_II.diagonal() ** -2, rtol=1e-4, atol=0)

    def test_dampens_by_the_mean_of_the_live_inputs(self) -> None:
        # Mean of 2 and 4 is 3, of which a tenth is added; the dead input gets the mean first.
        damped_II = damped_gram(torch.diag(torch.tensor([2.0, 0.0, 4.0])), 0.1, [])
        torch.testing.assert_close(damped_II, torch.diag(torch.tensor([2.3, 3.3, 4.3])))

    def test_all_inputs_dead(self) -> None:
        torch.testing.assert_close(damped_gram(torch.zeros(2, 2), 0.1, []), 1.1 * torch.eye(2))

    def test_tries_more_dampening(self) -> None:
        # Eigenvalues 2.05 and -0.05, of a matrix that rounding made indefinite: 0.01 is too little, 0.1 is enough.
        hessian = hessian_of(torch.tensor([[1.0, 1.05], [1.05, 1.0]]), 0.01, [])
        torch.testing.assert_close(hessian.damped_II.diagonal(), torch.tensor([1.1, 1.1]))

    def test_gives_up_with_the_layers_name(self) -> None:
        # Lowest eigenvalue -2; the last attempt adds 1.
        with pytest.raises(NumericalFailure, match=r"block\.q, block\.k: .* not positive definite") as caught:
            hessian_of(
                torch.tensor([[1.0, 3.0], [3.0, 1.0]]),
                0.001,
                [task(normal(1, 2), 0.5, "block.q"), task(normal(1, 2), 0.5, "block.k")],
            )
        assert "dampening" in caught.value.hint

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_refuses_statistics_that_are_not_finite(self, value: float) -> None:
        gram_II = gram_of(correlated_inputs(4))
        gram_II[1, 1] = value
        with pytest.raises(NumericalFailure, match=r"block\.q: 1 of 4 inputs"):
            hessian_of(gram_II, 0.01, [task(normal(1, 4), 0.5, "block.q")])

    def test_leaves_the_statistics_alone(self) -> None:
        gram_II = gram_of(correlated_inputs(8))
        hessian_of(gram_II, 0.01, [])
        assert torch.equal(gram_II, gram_of(correlated_inputs(8)))


class TestSolveColumns:
    def test_by_hand(self) -> None:
        gram_II = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        weight_OI = torch.tensor([[1.0, 3.0]])
        # Pivots from the last: 2, then 2 - 1 * 1 / 2 = 1.5. Costs 1^2 * 1.5 < 3^2 * 2, so the first goes, and the
        # second grows by 1 * G_12 / G_22 = 0.5. The error is the cost: [1, -0.5] G [1, -0.5]^T = 2 - 1 + 0.5.
        (pruned_OI,) = solve_columns([task(weight_OI, 0.5)], hessian_of(gram_II, 0.0, []), None, 128)
        torch.testing.assert_close(pruned_OI, torch.tensor([[0.0, 3.5]]))
        torch.testing.assert_close(output_error(weight_OI, pruned_OI, gram_II), torch.tensor([1.5]).double())

    @pytest.mark.parametrize("stripe", [1, 8, 16, 40, 128])
    def test_is_the_papers_algorithm(self, stripe: int) -> None:
        # 50 inputs: the last stripe is smaller, and stripes of 40 are solved in more than one part.
        gram_II, weight_OI = gram_of(correlated_inputs(50)), normal(12, 50)
        (pruned_OI,) = solve_columns([task(weight_OI, 0.6)], hessian_of(gram_II, 0.01, []), None, stripe)
        torch.testing.assert_close(
            pruned_OI.double(), by_the_book(weight_OI, gram_II, 0.6, None, stripe), rtol=0, atol=1e-5
        )

    @pytest.mark.parametrize(("kept_of", "sparsity"), [((2, 4), 0.5), ((3, 4), 0.25), ((4, 8), 0.5), ((8, 16), 0.5)])
    def test_is_the_papers_algorithm_in_groups(self, kept_of: tuple[int, int], sparsity: float) -> None:
        gram_II, weight_OI = gram_of(correlated_inputs(48)), normal(12, 48)
        (pruned_OI,) = solve_columns([task(weight_OI, sparsity)], hessian_of(gram_II, 0.01, []), kept_of, 32)
        expected_OI = by_the_book(weight_OI, gram_II, sparsity, kept_of, 32)
        torch.testing.assert_close(pruned_OI.double(), expected_OI, rtol=0, atol=1e-5)
        zeros_OGM = (pruned_OI == 0).reshape(12, -1, kept_of[1])
        assert (zeros_OGM.sum(dim=2) == kept_of[1] - kept_of[0]).all()

    @pytest.mark.parametrize("kept_of", [None, (2, 4)])
    def test_layers_of_a_stream_do_not_change_one_another(self, kept_of: tuple[int, int] | None) -> None:
        # Of different sizes, sparsities and scales: a threshold over both would empty the small one.
        hessian = hessian_of(gram_of(correlated_inputs(40)), 0.01, [])
        layers = [task(normal(12, 40), 0.5), task(0.01 * normal(7, 40, seed=3), 0.75)]
        together = solve_columns(layers, hessian, kept_of, 16)
        for layer, pruned_OI in zip(layers, together, strict=True):
            (alone_OI,) = solve_columns([layer], hessian, kept_of, 16)
            torch.testing.assert_close(pruned_OI, alone_OI, rtol=1e-4, atol=1e-6)
            assert torch.equal(pruned_OI == 0, alone_OI == 0)

    def test_uncorrelated_inputs_are_pruned_by_magnitude_and_nothing_else_changes(self) -> None:
        weight_OI = normal(6, 24)
        (pruned_OI,) = solve_columns([task(weight_OI, 0.5)], hessian_of(torch.eye(24), 0.01, []), None, 8)
        expected_OI = weight_OI.clone()
        for begin in (0, 8, 16):
            # Half of each stripe of 8: the 24 smallest of 48, wherever in its rows.
            median = weight_OI[:, begin : begin + 8].abs().flatten().sort().values[23]
            expected_OI[:, begin : begin + 8][weight_OI[:, begin : begin + 8].abs() <= median] = 0
        assert torch.equal(pruned_OI, expected_OI)

    @pytest.mark.parametrize("sparsity", [0.0, 0.013, 0.3, 0.5, 0.77, 0.99])
    def test_counts_are_exact_in_total_and_even_over_stripes(self, sparsity: float) -> None:
        hessian = hessian_of(gram_of(correlated_inputs(30)), 0.01, [])
        (pruned_OI,) = solve_columns([task(normal(7, 30), sparsity)], hessian, None, 8)
        assert int((pruned_OI == 0).sum()) == round(7 * 30 * sparsity)
        for begin in (0, 8, 16):
            assert abs(int((pruned_OI[:, begin : begin + 8] == 0).sum()) - 7 * 8 * sparsity) <= 1

    def test_nothing_to_remove(self) -> None:
        (pruned_OI,) = solve_columns(
            [task(normal(3, 9), 0.0)], hessian_of(gram_of(correlated_inputs(9)), 0.01, []), None, 4
        )
        assert torch.equal(pruned_OI, normal(3, 9))

    def test_never_worse_than_the_same_mask_without_compensation(self) -> None:
        gram_II, weight_OI = gram_of(correlated_inputs(64)), normal(20, 64)
        (pruned_OI,) = solve_columns([task(weight_OI, 0.5)], hessian_of(gram_II, 0.001, []), None, 16)
        masked_OI = weight_OI * (pruned_OI != 0)
        assert (output_error(weight_OI, pruned_OI, gram_II) < output_error(weight_OI, masked_OI, gram_II)).all()

    def test_dead_inputs_go_first_but_not_beyond_the_count(self) -> None:
        inputs_TI = correlated_inputs(12)
        inputs_TI[:, 2:10] = 0
        gram_II, weight_OI = gram_of(inputs_TI), 100 * normal(4, 12)
        # 8 of 12 inputs are dead and 24 of 48 weights go: none of a live input, although dead weights are large.
        (pruned_OI,) = solve_columns([task(weight_OI, 0.5)], hessian_of(gram_II, 0.01, []), None, 12)
        assert int((pruned_OI == 0).sum()) == 24
        kept_OI = pruned_OI != 0
        assert kept_OI[:, [0, 1, 10, 11]].all()
        assert torch.equal(pruned_OI[kept_OI], weight_OI[kept_OI])

    def test_a_gram_of_rank_one(self) -> None:
        # Every token is a multiple of one c, so the output only knows w c, and whatever goes the later inputs can
        # carry all of. Only where the last inputs of a row go is an error left.
        c_1I = normal(1, 16).abs() + 0.5
        weight_OI = normal(8, 16).abs()
        gram_II = c_1I.T @ c_1I
        (pruned_OI,) = solve_columns([task(weight_OI, 0.5)], hessian_of(gram_II, 0.01, []), None, 4)
        masked_OI = weight_OI * (pruned_OI != 0)
        error, masked = (output_error(weight_OI, v_OI, gram_II).sum() for v_OI in (pruned_OI, masked_OI))
        assert error < 0.01 * masked


class TestRefit:
    def test_equals_least_squares_on_the_tokens(self) -> None:
        inputs_TI, weight_OI = correlated_inputs(24), normal(6, 24)
        keep_OI = normal(6, 24, seed=5) > 0
        gram_II = gram_of(inputs_TI)
        refit_OI = refit(weight_OI * keep_OI, keep_OI, weight_OI @ gram_II, gram_II, 100, 1e-6)
        assert torch.equal(refit_OI != 0, keep_OI)
        for weight_I, keep_I, refit_I in zip(weight_OI, keep_OI, refit_OI, strict=True):
            solution = torch.linalg.lstsq(
                inputs_TI[:, keep_I].double(), (inputs_TI @ weight_I).double()[:, None]
            ).solution
            # The residual is 1e-6 of the right-hand side, and no eigenvalue is far below 0.1 of the diagonal.
            torch.testing.assert_close(refit_I[keep_I].double(), solution[:, 0], rtol=0, atol=2e-5)

    def test_rows_stop_on_their_own(self) -> None:
        # Nine rows start at their solutions and one does not: only that one may change, and must.
        gram_II, weight_OI = gram_of(correlated_inputs(16)), normal(10, 16)
        keep_OI = torch.ones(10, 16, dtype=torch.bool)
        start_OI = weight_OI.clone()
        start_OI[4] = 0
        refit_OI = refit(start_OI, keep_OI, weight_OI @ gram_II, gram_II, 100, 1e-6)
        others = [i for i in range(10) if i != 4]
        assert torch.equal(refit_OI[others], weight_OI[others])
        torch.testing.assert_close(refit_OI[4], weight_OI[4], rtol=0, atol=2e-5)
        assert not start_OI[4].any()  # inputs are not written to

    def test_every_iteration_brings_it_closer(self) -> None:
        gram_II, weight_OI = gram_of(correlated_inputs(32)), normal(5, 32)
        keep_OI = normal(5, 32, seed=6) > 0
        errors = [
            output_error(
                weight_OI, refit(weight_OI * keep_OI, keep_OI, weight_OI @ gram_II, gram_II, n, 1e-6), gram_II
            ).sum()
            for n in range(6)
        ]
        assert all(later < earlier for earlier, later in pairwise(errors))

    def test_nothing_kept(self) -> None:
        nothing_OI = torch.zeros(2, 3, dtype=torch.bool)
        assert not refit(torch.zeros(2, 3), nothing_OI, torch.ones(2, 3), torch.eye(3), 10, 1e-6).any()


def test_output_error_is_the_mean_over_tokens() -> None:
    inputs_TI, weight_OI, pruned_OI = correlated_inputs(10), normal(4, 10), normal(4, 10, seed=8)
    direct_O = (inputs_TI.double() @ (weight_OI - pruned_OI).double().T).square().mean(dim=0)
    torch.testing.assert_close(output_error(weight_OI, pruned_OI, gram_of(inputs_TI)), direct_O, rtol=1e-5, atol=0)

"""FISTAPruner: its relaxed problem against closed forms, its guarantee, and exact counts. O = outputs, I = inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from workers.engine.contracts.facts import LayerTask, LinearStats
from workers.engine.errors import NumericalFailure
from workers.engine.maths.second_order import output_error
from workers.engine.maths.selection import dropped
from workers.engine.methods.prune import fista, sparsegpt
from workers.engine.methods.prune.fista import FISTAParams


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(inputs: int, seed: int = 1) -> Tensor:
    """[T, I], each of its own scale, correlated."""
    scale_I = torch.linspace(0.2, 3, inputs)
    return (
        normal(300, inputs, seed=seed)
        @ (torch.eye(inputs) + 0.7 * normal(inputs, inputs, seed=2) / inputs**0.5)
        * scale_I
    )


def stats_of(inputs_TI: Tensor, dense_TI: Tensor | None = None) -> LinearStats:
    tokens = len(inputs_TI)
    return LinearStats(
        tokens=tokens,
        gram_II=inputs_TI.T @ inputs_TI / tokens,
        cross_gram_II=None if dense_TI is None else dense_TI.T @ inputs_TI / tokens,
        dense_gram_II=None if dense_TI is None else dense_TI.T @ dense_TI / tokens,
    )


def problem_of(weight_OI: Tensor, stats: LinearStats) -> Any:
    return fista._problems([LayerTask("q", weight_OI, 0.5)], stats, 0.01)[0]


class TestProblem:
    def test_one_step_is_the_soft_threshold_where_inputs_are_uncorrelated(self) -> None:
        # A = I, so B = W and the step lands on B: every entry moves 0.5 / 1.01 towards zero, and not across it.
        problem = problem_of(torch.tensor([[2.0, -0.3, -1.0]]), LinearStats(gram_II=torch.eye(3)))
        relaxed_OI = problem.relaxed(torch.tensor([[2.0, -0.3, -1.0]]), 0.5, 1)
        torch.testing.assert_close(relaxed_OI, torch.tensor([[2 - 0.5 / 1.01, 0.0, -1 + 0.5 / 1.01]]))

    def test_satisfies_the_optimality_conditions_of_the_lasso(self) -> None:
        problem = problem_of(normal(4, 12), stats_of(inputs_of(12)))
        penalty = 0.3
        relaxed_OI = problem.relaxed(problem.dense_OI, penalty, 3000)
        slope_OI = relaxed_OI @ problem.gram_II - problem.target_OI.float()
        zero_OI = relaxed_OI == 0
        assert 0 < int(zero_OI.sum()) < zero_OI.numel()
        assert (slope_OI[zero_OI].abs() <= penalty + 1e-3).all()
        torch.testing.assert_close(slope_OI[~zero_OI], -penalty * relaxed_OI[~zero_OI].sign(), rtol=0, atol=1e-3)

    def test_without_a_penalty_it_is_least_squares(self) -> None:
        inputs_TI, dense_TI, weight_OI = inputs_of(10), inputs_of(10, seed=5), normal(4, 10)
        problem = problem_of(weight_OI, stats_of(inputs_TI, dense_TI))
        found_OI = problem.relaxed(problem.dense_OI, 0.0, 3000) / problem.scale_I
        solution_IO = torch.linalg.lstsq(inputs_TI, dense_TI @ weight_OI.T).solution
        torch.testing.assert_close(found_OI, solution_IO.T, rtol=0, atol=1e-3)

    def test_error_is_that_of_the_tokens(self) -> None:
        inputs_TI, dense_TI = inputs_of(10).double(), inputs_of(10, seed=5).double()
        weight_OI, other_OI = normal(4, 10), normal(4, 10, seed=6)
        problem = problem_of(weight_OI, stats_of(inputs_TI.float(), dense_TI.float()))
        direct = (inputs_TI @ other_OI.T.double() - dense_TI @ weight_OI.T.double()).square().sum(dim=1).mean()
        assert problem.error(other_OI * problem.scale_I) == pytest.approx(float(direct), rel=1e-5)

    def test_steepness_is_the_largest_eigenvalue(self) -> None:
        gram_II = stats_of(inputs_of(30)).gram_II
        assert gram_II is not None
        # A vector of ones is orthogonal to the steepest direction of the second.
        for matrix_II in (gram_II, torch.tensor([[1.0, -0.9], [-0.9, 1.0]])):
            assert fista._largest_eigenvalue(matrix_II) == pytest.approx(
                float(torch.linalg.eigvalsh(matrix_II)[-1]), rel=0.02
            )


def pruned(layer: LayerTask, stats: LinearStats, group: Any = "row", **params: Any) -> Tensor:
    return fista.prune([layer], stats, group, FISTAParams.model_validate(params))[0]


def test_uncorrelated_inputs_keep_the_largest_contributions_as_they_are() -> None:
    # |w| times the root mean square 1, 2, 3 of the inputs: 3, 2, 6 and 1, 8, 3. The lowest of each row goes.
    layer = LayerTask("q", torch.tensor([[3.0, -1.0, 2.0], [1.0, 4.0, -1.0]]), 1 / 3)
    stats = LinearStats(gram_II=torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    expected_OI = torch.tensor([[3.0, 0.0, 2.0], [0.0, 4.0, -1.0]])
    torch.testing.assert_close(pruned(layer, stats, sparsity=1 / 3), expected_OI, rtol=1e-3, atol=0)


def test_makes_up_for_what_earlier_layers_lost() -> None:
    # The dense input 0 is 1.5 times what is left of it, the dense input 1 what it was: B = [6, 1], A = diag [4, 1].
    stats = LinearStats(
        gram_II=torch.diag(torch.tensor([4.0, 1.0])),
        cross_gram_II=torch.diag(torch.tensor([6.0, 1.0])),
        dense_gram_II=torch.diag(torch.tensor([9.0, 1.0])),
    )
    layer = LayerTask("q", torch.tensor([[1.0, 1.0]]), 0.5)
    found_OI = pruned(layer, stats, sparsity=0.5, dampening=1e-6)
    torch.testing.assert_close(found_OI, torch.tensor([[1.5, 0.0]]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("given", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"pattern": "2:4"}])
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_is_better_than_its_start(given: dict[str, Any], scored: bool, moved: bool) -> None:
    inputs_TI, weight_OI = inputs_of(32), normal(12, 32)
    stats = stats_of(inputs_TI, inputs_TI + 0.1 * inputs_of(32, seed=7) if moved else None)
    assert stats.gram_II is not None
    start_score_OI = weight_OI.abs() * stats.gram_II.diagonal().sqrt()
    if scored:
        start_score_OI = 1 / start_score_OI  # the worst there is
    params = FISTAParams.model_validate(given)
    assert params.target is not None
    start_OI = weight_OI * ~dropped(start_score_OI, params.target, "row", params.kept_of)
    layer = LayerTask("q", weight_OI, params.target, start_score_OI if scored else None)
    problem = problem_of(weight_OI, stats)
    error, before = (problem.error(v_OI * problem.scale_I) for v_OI in (pruned(layer, stats, **given), start_OI))
    assert error < 0.9 * before


def test_a_start_that_cannot_be_improved_is_returned() -> None:
    # Uncorrelated inputs, so the masked dense weights are the best on their support, and Wanda's support is the best.
    layer = LayerTask("q", normal(5, 16), 0.5)
    best_OI = layer.weight_OI * ~dropped(layer.weight_OI.abs(), 0.5, "row", None)
    assert torch.equal(pruned(layer, LinearStats(gram_II=torch.eye(16)), sparsity=0.5), best_OI)


def test_is_closer_to_the_dense_outputs_than_sparsegpt() -> None:
    stats, layer = stats_of(inputs_of(64)), LayerTask("q", normal(16, 64), 0.5)
    assert stats.gram_II is not None
    (sequential_OI,) = sparsegpt.prune([layer], stats, "matrix", sparsegpt.SparseGPTParams(sparsity=0.5))
    found_OI = pruned(layer, stats, sparsity=0.5)
    error, sequential = (output_error(layer.weight_OI, v_OI, stats.gram_II).sum() for v_OI in (found_OI, sequential_OI))
    assert error < 0.9 * sequential


def test_equal_inputs_need_no_other_matrices() -> None:
    inputs_TI = inputs_of(20)
    layer = LayerTask("q", normal(6, 20), 0.5)
    alone_OI, given_OI = (
        pruned(layer, stats, sparsity=0.5) for stats in (stats_of(inputs_TI), stats_of(inputs_TI, inputs_TI))
    )
    torch.testing.assert_close(alone_OI, given_OI, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", ["row", "matrix"])
@pytest.mark.parametrize("given", [{"sparsity": 0.0}, {"sparsity": 0.37}, {"sparsity": 0.9}, {"pattern": "2:4"}])
def test_removes_exactly_what_it_says_with_dead_inputs_first(given: dict[str, Any], group: Any) -> None:
    inputs_TI = inputs_of(40)
    inputs_TI[:, 4:24] = 0  # more than go at the lower sparsities, so some dead weights stay
    weight_OI = 30 * normal(9, 40)
    params = FISTAParams.model_validate(given)
    assert params.target is not None
    pruned_OI = pruned(LayerTask("q", weight_OI, params.target), stats_of(inputs_TI), group, **given)
    gone_OI = pruned_OI == 0
    assert pruned_OI.isfinite().all()
    assert int(gone_OI.sum()) == params.removed((9, 40), params.target, group)
    if given == {"sparsity": 0.37}:
        assert not gone_OI[:, :4].any()
        assert not gone_OI[:, 24:].any()
    dead_OI = ~gone_OI[:, 4:24]
    assert torch.equal(pruned_OI[:, 4:24][dead_OI], weight_OI[:, 4:24][dead_OI])


def test_layers_have_their_own_sparsity() -> None:
    params = FISTAParams(pattern="2:4")
    layers = [LayerTask("q", normal(6, 16), 0.25), LayerTask("k", normal(4, 16, seed=3), 0.75)]
    for layer, pruned_OI in zip(layers, fista.prune(layers, stats_of(inputs_of(16)), "row", params), strict=True):
        assert ((pruned_OI == 0).reshape(-1, 4).sum(dim=1) == 4 * layer.sparsity).all()


@pytest.mark.parametrize("field", ["gram_II", "cross_gram_II", "dense_gram_II"])
def test_refuses_statistics_that_are_not_finite(field: str) -> None:
    matrices = {name: torch.eye(4) for name in ("gram_II", "cross_gram_II", "dense_gram_II")}
    matrices[field][0, 0] = torch.nan
    with pytest.raises(NumericalFailure, match="q_proj"):
        pruned(LayerTask("q_proj", normal(2, 4), 0.5), LinearStats(**matrices), sparsity=0.5)

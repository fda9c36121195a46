"""The multiple removal problem: exact on its support, never worse than where it starts. O = outputs, I = inputs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from workers.engine.contracts.facts import LayerTask, LinearStats
from workers.engine.maths.second_order import damped_gram, output_error
from workers.engine.methods.prune import mrp, sparsegpt
from workers.engine.methods.prune.mrp import MRPParams


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(inputs: int) -> Tensor:
    inputs_TI = normal(400, inputs, seed=1) @ (torch.eye(inputs) + 0.7 * normal(inputs, inputs, seed=2) / inputs**0.5)
    return inputs_TI.T @ inputs_TI / 400


def pruned(layer: LayerTask, gram_II: Tensor, **params: Any) -> Tensor:
    return mrp.prune([layer], LinearStats(gram_II=gram_II), "row", MRPParams.model_validate(params))[0]


def test_weights_before_and_after_what_goes_are_refitted_by_hand() -> None:
    gram_II = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    weight_OI = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 3.0]])
    score_OI = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    # Row 0 loses w_1: w G = [4, 8, 8] and [[2, 1], [1, 2]] [a, b] = [8, 8]: a = b = 8/3.
    # Row 1 loses w_3, after which there is no input left: w G = [6, 9, 8] and [[2, 1], [1, 2]] [a, b] = [6, 9]: 1, 4.
    pruned_OI = pruned(LayerTask("q", weight_OI, 1 / 3, score_OI), gram_II, sparsity=1 / 3, dampening=1e-6)
    torch.testing.assert_close(pruned_OI, torch.tensor([[0.0, 8 / 3, 8 / 3], [1.0, 4.0, 0.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("given", [{"sparsity": 0.6}, {"pattern": "2:4"}])
def test_is_the_papers_closed_form(given: dict[str, Any]) -> None:
    gram_II, weight_OI = gram(16), normal(6, 16)
    pruned_OI = pruned(LayerTask("q", weight_OI, given.get("sparsity", 0.5)), gram_II, **given)
    inverse_II = damped_gram(gram_II, 0.01, []).double().inverse()
    for weight_I, pruned_I in zip(weight_OI.double(), pruned_OI, strict=True):
        q = (pruned_I == 0).nonzero().flatten()
        # Eq. 13: w - w_Q (G_QQ)^-1 G_Q:
        exact_I = weight_I - weight_I[q] @ inverse_II[q][:, q].inverse() @ inverse_II[q]
        # Residual 1e-6, eigenvalues of H within a factor of some ten of its diagonal.
        torch.testing.assert_close(pruned_I.double(), exact_I, rtol=0, atol=3e-5)


def test_nearly_equal_inputs_are_solved_too() -> None:
    """Pairs of inputs that differ by a hundredth: many steps, and the same closed form."""
    half_TI = normal(200, 12, seed=1)
    inputs_TI = torch.cat([half_TI, half_TI + 0.01 * normal(200, 12, seed=2)], dim=1)
    gram_II, weight_OI = inputs_TI.T @ inputs_TI / 200, normal(6, 24)
    pruned_OI = pruned(LayerTask("q", weight_OI, 0.4), gram_II, sparsity=0.4, dampening=1e-3)
    damped_II = damped_gram(gram_II, 1e-3, []).double()
    for weight_I, pruned_I in zip(weight_OI.double(), pruned_OI.double(), strict=True):
        kept = pruned_I != 0
        exact_I = torch.linalg.solve(damped_II[kept][:, kept], (weight_I @ damped_II)[kept])
        least, found = (
            (weight_I - torch.zeros(24).double().masked_scatter(kept, solution_I))
            for solution_I in (exact_I, pruned_I[kept])
        )
        assert found @ damped_II @ found == pytest.approx(float(least @ damped_II @ least), rel=1e-5)


@pytest.mark.parametrize("given", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"pattern": "2:4"}, {"pattern": "3:4"}])
def test_has_sparsegpts_mask_and_no_row_is_worse(given: dict[str, Any]) -> None:
    params = sparsegpt.SparseGPTParams.model_validate(given)
    assert params.target is not None
    gram_II, layer = gram(64), LayerTask("q", normal(20, 64), params.target)
    (sequential_OI,) = sparsegpt.prune([layer], LinearStats(gram_II=gram_II), "matrix", params)
    pruned_OI = pruned(layer, gram_II, **given)
    assert torch.equal(pruned_OI == 0, sequential_OI == 0)
    error_O = output_error(layer.weight_OI, pruned_OI, gram_II)
    before_O = output_error(layer.weight_OI, sequential_OI, gram_II)
    assert (error_O <= before_O).all()
    assert error_O.sum() < 0.95 * before_O.sum()


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_a_score_decides_what_goes(group: Any) -> None:
    weight_OI, score_OI = normal(8, 20), normal(8, 20, seed=4).abs()
    params = MRPParams(sparsity=0.5, mask="saliency")
    (pruned_OI,) = mrp.prune([LayerTask("q", weight_OI, 0.5, score_OI)], LinearStats(gram_II=gram(20)), group, params)
    lowest = score_OI.median() if group == "matrix" else score_OI.median(dim=1, keepdim=True).values
    assert torch.equal(pruned_OI == 0, score_OI <= lowest)  # torch's median is the lower of the two in the middle


def test_saliency_by_hand() -> None:
    # Uncorrelated inputs: costs are w^2 * [4, 1], over the whole matrix 1.44, 1 and 36, 25.
    layer = LayerTask("q", torch.tensor([[0.6, 1.0], [3.0, 5.0]]), 0.5)
    pruned_OI = pruned(layer, torch.tensor([[4.0, 0.0], [0.0, 1.0]]), sparsity=0.5, mask="saliency", dampening=1e-6)
    assert pruned_OI.tolist() == [[0.0, 0.0], [3.0, 5.0]]


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("2:4", 0.25), ("2:4", 0.75), ("3:6", 0.5)])
def test_joint_finds_the_cheapest_set_of_every_group(pattern: str, sparsity: float) -> None:
    gram_II, weight_OI = gram(12), normal(5, 12)
    m = int(pattern[2])
    inverse_II = damped_gram(gram_II, 0.01, []).double().inverse()
    pruned_OI = pruned(LayerTask("q", weight_OI, sparsity), gram_II, pattern=pattern, mask="joint")
    for row, begin in ((r, b) for r in range(5) for b in range(0, 12, m)):

        def cost(chosen: tuple[int, ...], row: int = row, begin: int = begin) -> float:
            q = [begin + i for i in chosen]
            return float(weight_OI[row, q].double() @ inverse_II[q][:, q].inverse() @ weight_OI[row, q].double())

        cheapest = min(combinations(range(m), round(m * sparsity)), key=cost)
        assert tuple((pruned_OI[row, begin : begin + m] == 0).nonzero().flatten().tolist()) == cheapest


def test_joint_sees_what_saliency_does_not() -> None:
    # Inputs 0 and 1 are nearly equal: each can make up for the other, so alone both cost next to nothing and saliency
    # removes both, which nothing makes up for. Together with one of 2 and 3, of weight 0.5, it is cheaper.
    gram_II = torch.eye(4)
    gram_II[0, 1] = gram_II[1, 0] = 0.99
    layer = LayerTask("q", torch.tensor([[1.0, 1.0, 0.5, 0.6]]), 0.5)
    errors = {}
    for mask in ("saliency", "joint"):
        pruned_OI = pruned(layer, gram_II, pattern="2:4", mask=mask, dampening=1e-4)
        errors[mask] = float(output_error(layer.weight_OI, pruned_OI, gram_II))
    # Saliency: [1, 1] G [1, 1]^T = 3.98. Joint: 0.25 of input 2, and 1 - 0.99^2 of input 0 or 1.
    assert errors == pytest.approx({"saliency": 3.98, "joint": 0.2699}, rel=1e-3)


@pytest.mark.parametrize("given", [{"sparsity": 0.37}, {"sparsity": 0.0}, {"pattern": "1:4"}, {"pattern": "3:5"}])
@pytest.mark.parametrize("mask", ["sequential", "saliency"])
def test_removes_exactly_what_it_says_with_dead_inputs_first(mask: str, given: dict[str, Any]) -> None:
    removes_exactly_what_it_says(mask, given)


@pytest.mark.parametrize("pattern", ["1:4", "3:5"])
def test_joint_removes_exactly_what_it_says_with_dead_inputs_first(pattern: str) -> None:
    removes_exactly_what_it_says("joint", {"pattern": pattern})


def removes_exactly_what_it_says(mask: str, given: dict[str, Any]) -> None:
    params = MRPParams.model_validate(given | {"mask": mask})
    assert params.target is not None
    gram_II = gram(40)
    gram_II[7], gram_II[:, 7] = 0, 0
    weight_OI = normal(24, 40)
    weight_OI[:, 7] = 50
    pruned_OI = pruned(LayerTask("q", weight_OI, params.target), gram_II, **given, mask=mask)
    assert pruned_OI.isfinite().all()
    assert int((pruned_OI == 0).sum()) == params.removed((24, 40), params.target, "matrix")
    assert not pruned_OI[:, 7].any() or params.target == 0


def test_nothing_to_remove_changes_nothing() -> None:
    assert torch.equal(pruned(LayerTask("q", normal(4, 8), 0.0), gram(8), sparsity=0.0), normal(4, 8))


def test_layers_of_a_stream_do_not_change_one_another() -> None:
    stats, params = LinearStats(gram_II=gram(32)), MRPParams(sparsity=0.5)
    layers = [LayerTask("q", normal(12, 32), 0.5), LayerTask("k", 0.01 * normal(6, 32, seed=3), 0.7)]
    for layer, pruned_OI in zip(layers, mrp.prune(layers, stats, "row", params), strict=True):
        (alone_OI,) = mrp.prune([layer], stats, "row", params)
        torch.testing.assert_close(pruned_OI, alone_OI, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("given", [{"sparsity": 0.5}, {"pattern": "8:16"}])
def test_joint_needs_small_groups(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="mask_mismatch"):
        MRPParams.model_validate(given | {"mask": "joint"})

"""SparseGPT as a method: parameters, counts, invariances; its solve is in maths/. O = outputs, I = inputs."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from workers.engine.contracts.facts import LayerTask, LinearStats
from workers.engine.errors import NumericalFailure
from workers.engine.methods.prune.sparsegpt import SparseGPTParams, prune


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stats(inputs: int, scale: float = 1.0) -> LinearStats:
    inputs_TI = scale * normal(300, inputs, seed=1) @ normal(inputs, inputs, seed=2)
    return LinearStats(tokens=300, gram_II=inputs_TI.T @ inputs_TI / 300)


def test_by_hand() -> None:
    # Pivots from the last input: 1, then 2 - 1 * 1 / 1 = 1, then 3 - 1 = 2: G_{1,23} G_{23,23}^-1 G_{23,1} is 1.
    # Costs w^2 * pivot: 2, 4, 9 in row 0 and 8, 1, 4 in row 1. Two of six go: input 0 of row 0, input 1 of row 1.
    # Row 0: [[2, 1], [1, 1]] [a, b] = 1 * [1, 1] makes up for it: a = 0, b = 1, and the last weight grows from 3 to 4.
    # Row 1: only the last input is later; it makes up for -1 by -1 * 1 / 1: 2 becomes 1.
    gram_II = torch.tensor([[3.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    weight_OI = torch.tensor([[1.0, 2.0, 3.0], [2.0, -1.0, 2.0]])
    (pruned_OI,) = prune(
        [LayerTask("q", weight_OI, 1 / 3)],
        LinearStats(gram_II=gram_II),
        "matrix",
        SparseGPTParams(sparsity=1 / 3, dampening=1e-6),
    )
    torch.testing.assert_close(pruned_OI, torch.tensor([[0.0, 2.0, 4.0], [2.0, 0.0, 1.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "given", [{"sparsity": 0.0}, {"sparsity": 0.37}, {"sparsity": 0.9}, {"pattern": "2:4"}, {"pattern": "3:4"}]
)
def test_removes_exactly_what_it_says(given: dict[str, object]) -> None:
    params = SparseGPTParams.model_validate({"block_size": 16} | given)
    assert params.target is not None
    layers = [LayerTask(name, normal(o, 40), params.target) for name, o in (("q", 24), ("k", 7))]
    for layer, pruned_OI in zip(layers, prune(layers, stats(40), "matrix", params), strict=True):
        assert pruned_OI.shape == layer.weight_OI.shape
        shape = (len(pruned_OI), 40)
        assert int((pruned_OI == 0).sum()) == params.removed(shape, layer.sparsity, "matrix")


def test_each_layer_loses_its_own_share() -> None:
    params = SparseGPTParams(pattern="2:4")
    layers = [LayerTask("q", normal(8, 16), 0.25), LayerTask("k", normal(8, 16, seed=3), 0.75)]
    q_OI, k_OI = prune(layers, stats(16), "matrix", params)
    assert ((q_OI == 0).reshape(-1, 4).sum(dim=1) == 1).all()
    assert ((k_OI == 0).reshape(-1, 4).sum(dim=1) == 3).all()


def test_the_scale_of_the_inputs_does_not_matter_but_that_of_rows_does() -> None:
    params = SparseGPTParams(sparsity=0.5)
    weight_OI = normal(6, 24)

    def pruned(weight_OI: Tensor, scale: float) -> Tensor:
        return prune([LayerTask("q", weight_OI, 0.5)], stats(24, scale), "matrix", params)[0]

    torch.testing.assert_close(pruned(weight_OI, 64), pruned(weight_OI, 1), rtol=1e-5, atol=1e-6)
    # Weights of all rows compete: a small row loses all of its own.
    weight_OI[2] *= 1e-3
    assert not pruned(weight_OI, 1)[2].any()


def test_half_precision_weights_are_solved_in_float32_and_left_alone() -> None:
    weight_OI = normal(6, 24).bfloat16()
    params = SparseGPTParams(sparsity=0.5)
    (pruned_OI,) = prune([LayerTask("q", weight_OI, 0.5)], stats(24), "matrix", params)
    (again_OI,) = prune([LayerTask("q", weight_OI.float(), 0.5)], stats(24), "matrix", params)
    assert pruned_OI.dtype == torch.float32
    assert torch.equal(pruned_OI, again_OI)
    assert torch.equal(weight_OI, normal(6, 24).bfloat16())


def test_blocks_hold_whole_groups() -> None:
    with pytest.raises(ValidationError, match="block_size_mismatch"):
        SparseGPTParams(pattern="2:4", block_size=126)
    assert SparseGPTParams(sparsity=0.5, block_size=126).block_size == 126


def test_refuses_statistics_that_overflowed() -> None:
    gram_II = torch.full((4, 4), torch.inf)
    with pytest.raises(NumericalFailure, match="q_proj"):
        prune(
            [LayerTask("q_proj", normal(2, 4), 0.5)],
            LinearStats(gram_II=gram_II),
            "matrix",
            SparseGPTParams(sparsity=0.5),
        )

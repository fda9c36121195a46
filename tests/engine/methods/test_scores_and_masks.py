"""Magnitude, Wanda and the mask on matrices that can be redone by hand. O = outputs, I = inputs."""

from __future__ import annotations

import pytest
import torch

from workers.engine.contracts.facts import LayerTask, LinearStats
from workers.engine.contracts.params import NORMS, Group, Norm
from workers.engine.laws.random_layers import stats_of
from workers.engine.methods.prune import mask
from workers.engine.methods.prune.mask import MaskParams
from workers.engine.methods.score import magnitude, wanda


def prune(
    weight_OI: torch.Tensor, score_OI: torch.Tensor, sparsity: float, group: Group, params: MaskParams
) -> torch.Tensor:
    """One layer alone."""
    (pruned_OI,) = mask.prune([LayerTask("layer", weight_OI, sparsity, score_OI)], LinearStats(), group, params)
    return pruned_OI


def test_magnitude_over_the_whole_matrix() -> None:
    weight_OI = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 0.5, 0.0]])
    score_OI = magnitude.score(weight_OI, LinearStats(), magnitude.MagnitudeParams())
    pruned_OI = prune(weight_OI, score_OI, 0.5, "matrix", MaskParams(sparsity=0.5))
    # |W| ascending: 0, 0.5, 1 | 2, 3, 4. Half of six entries go, wherever they are: two of them in row 1.
    assert pruned_OI.tolist() == [[0.0, -2.0, 3.0], [-4.0, 0.0, 0.0]]


def test_wanda_within_each_row() -> None:
    weight_OI = torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.5, 1.0]])
    stats = LinearStats(tokens=1, input_sq_mean_I=torch.tensor([4.0, 1.0, 0.25]))
    score_OI = wanda.score(weight_OI, stats, wanda.WandaParams())
    # Input norms 2, 1, 0.5 times |W|.
    assert score_OI.tolist() == [[2.0, 2.0, 1.5], [8.0, 0.5, 0.5]]
    # A third of three inputs: 1.5 in row 0; in row 1 the first of the two 0.5. |W| alone would drop 1 and 0.5.
    third = prune(weight_OI, score_OI, 1 / 3, "row", MaskParams(sparsity=1 / 3))
    assert third.tolist() == [[1.0, -2.0, 0.0], [4.0, 0.0, 1.0]]


def test_two_of_four_keeps_two_of_every_four() -> None:
    weight_OI = torch.tensor([[4.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 4.0]])
    pruned_OI = prune(weight_OI, weight_OI.abs(), 0.5, "row", MaskParams(pattern="2:4"))
    # The whole row's best four would be the same here; its best half of each group is not its best four below.
    assert pruned_OI.tolist() == [[4.0, 3.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]]
    weight_OI = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]])
    pruned_OI = prune(weight_OI, weight_OI.abs(), 0.5, "row", MaskParams(pattern="2:4"))
    assert pruned_OI.tolist() == [[9.0, 8.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]]


@pytest.mark.parametrize(("sparsity", "inputs", "dropped"), [(0.29, 100, 29), (0.5, 7, 3), (0.6, 256, 153)])
def test_rows_drop_the_floor(sparsity: float, inputs: int, dropped: int) -> None:
    # 0.29 * 100 is 28.999… in floating point.
    assert MaskParams(sparsity=sparsity).removed((3, inputs), sparsity, "row") == 3 * dropped


@pytest.mark.parametrize(("norm", "expected"), [("l1", 4.0), ("l2", 5.0), ("l4", 1201**0.25), ("max", 7.0)])
def test_wanda_by_another_norm(norm: Norm, expected: float) -> None:
    """Of the inputs 7 and 1: their mean, the root of 25, the fourth root of (2401 + 1) / 2, and the largest."""
    params = wanda.WandaParams(norm=norm)
    stats = stats_of(torch.tensor([[7.0], [1.0]]), NORMS[norm])
    assert wanda.score(torch.tensor([[-2.0]]), stats, params).item() == pytest.approx(2 * expected)
    assert NORMS[norm] not in params.waives


def test_wanda_ignores_the_scale_of_inputs_and_of_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI, sq_mean_I = torch.randn(6, 10, generator=generator), torch.rand(10, generator=generator)

    def mask(scale_O1: torch.Tensor, scale: float) -> torch.Tensor:
        stats = LinearStats(tokens=1, input_sq_mean_I=sq_mean_I * scale)
        score_OI = wanda.score(weight_OI * scale_O1, stats, wanda.WandaParams())
        return prune(weight_OI, score_OI, 0.5, "row", MaskParams(sparsity=0.5)) == 0

    assert torch.equal(mask(torch.ones(6, 1), 1), mask(torch.arange(1.0, 7).reshape(6, 1), 64))


@pytest.mark.parametrize(("inputs", "fits"), [(8, True), (12, True), (10, False)])
def test_misfit(inputs: int, fits: bool) -> None:
    assert (MaskParams(pattern="2:4").misfit((3, inputs)) is None) == fits
    assert MaskParams(sparsity=0.5).misfit((3, inputs)) is None


def test_layers_of_a_stream_have_their_own_sparsity() -> None:
    weight_OI = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
    tasks = [LayerTask(str(s), weight_OI, s, weight_OI.abs()) for s in (0.0, 0.25, 0.75)]
    pruned = mask.prune(tasks, LinearStats(), "row", MaskParams(sparsity=0.5))
    assert [p.tolist() for p in pruned] == [[[1.0, -2.0, 3.0, 4.0]], [[0.0, -2.0, 3.0, 4.0]], [[0.0, 0.0, 0.0, 4.0]]]
    pruned = mask.prune(tasks, LinearStats(), "row", MaskParams(pattern="2:4"))
    assert [int((p == 0).sum()) for p in pruned] == [0, 1, 3]

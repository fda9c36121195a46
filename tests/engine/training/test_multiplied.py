"""Multiplied weights, by hand and against the factors written out. O, I = outputs, inputs; R = bands of outputs."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from tests.helpers.small_models import spec_of
from tests.helpers.tuning import tuning
from workers.engine.training.multiplied import MultipliedLinear, bands, multiplied


def layer_of(weight_OI: Tensor, *, transposed: bool = False) -> nn.Linear | Conv1D:
    outputs, inputs = weight_OI.shape
    layer = Conv1D(outputs, inputs) if transposed else nn.Linear(inputs, outputs)
    layer.weight.data = weight_OI.T.contiguous() if transposed else weight_OI
    return layer.requires_grad_(False)


def random_weight(outputs: int = 12, inputs: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs, inputs, generator=generator) * (torch.rand(outputs, inputs, generator=generator) < 0.5)


def moved(weight_OI: Tensor, *, rank: int = 4, transposed: bool = False) -> MultipliedLinear:
    """Multiplied by factors that are not one."""
    torch.manual_seed(1)
    layer = MultipliedLinear(layer_of(weight_OI, transposed=transposed), rank=rank, scale=2.0)
    layer.b_O.data.normal_()
    return layer


def test_bands_are_of_consecutive_outputs_and_differ_by_one_at_most() -> None:
    assert bands(6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert bands(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert bands(3, 3).tolist() == [0, 1, 2]


def test_by_hand() -> None:
    weight_OI = torch.tensor([[1.0, 0.0], [2.0, 3.0], [0.0, 4.0], [5.0, 6.0]])
    layer = MultipliedLinear(layer_of(weight_OI), rank=2, scale=2.0)
    layer.a_RI.data, layer.b_O.data = torch.tensor([[1.0, -1.0], [0.5, 3.0]]), torch.tensor([1.0, -0.5, 2.0, 0.25])
    # Outputs 0 and 1 share the first row of A, 2 and 3 the second: 1 + 2 A b.
    expected_OI = torch.tensor([[3.0, -1.0], [0.0, 2.0], [3.0, 13.0], [1.25, 2.5]]) * weight_OI
    assert torch.equal(weight_OI * layer.held_factor(), expected_OI)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 5, 99])
def test_what_is_merged_is_what_was_trained_and_zeros_stay(rank: int, transposed: bool) -> None:
    weight_OI, x = random_weight(), torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(2))
    plain = layer_of(weight_OI, transposed=transposed)
    fresh = MultipliedLinear(layer_of(weight_OI, transposed=transposed), rank=rank, scale=2.0)
    fresh.base_layer.bias = plain.bias
    assert torch.allclose(fresh(x), plain(x), atol=1e-6), "b is zero: nothing is changed yet"
    layer = moved(weight_OI, rank=rank, transposed=transposed)
    held_factor = layer.held_factor()
    merged_OI = weight_OI * (held_factor.T if transposed else held_factor)
    assert torch.equal(merged_OI == 0, weight_OI == 0)
    assert torch.equal(layer(x), linear(x, merged_OI, layer.base_layer.bias))
    assert layer.a_RI.numel() + layer.b_O.numel() == min(rank, 12) * 10 + 12


@pytest.mark.parametrize("rank", [4, 5])
def test_gradients_are_those_of_finite_differences(rank: int) -> None:
    layer = moved(random_weight().double(), rank=rank).double()
    x = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)

    def product(x: Tensor, a_RI: Tensor, b_O: Tensor) -> Tensor:
        layer.a_RI, layer.b_O = nn.Parameter(a_RI), nn.Parameter(b_O)
        return torch.func.functional_call(layer, {"a_RI": a_RI, "b_O": b_O}, (x,))

    a_RI, b_O = (p.detach().clone().requires_grad_() for p in (layer.a_RI, layer.b_O))
    assert torch.autograd.gradcheck(product, (x, a_RI, b_O))


def test_keeps_no_weight_written_out_for_the_backward_pass() -> None:
    layer = moved(random_weight(64, 32))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        layer(torch.randn(3, 32, requires_grad=True))
    assert max(kept) < 64 * 32


def test_takes_the_place_of_layers_in_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    layers = multiplied(model, ["1"], rank=2, scale=2.0)
    assert model[1] is layers["1"]
    assert isinstance(model[0], nn.Linear)


def test_blocks_that_were_added_are_not_multiplied() -> None:
    grown = {"score": None, "prune": None, "grow": {"method": "duplicate", "layers": 1}}
    with pytest.raises(ValidationError, match="multiplies weights"):
        spec_of(**grown, tune=tuning("spp"))
    spec_of(**grown, tune=tuning("full"))

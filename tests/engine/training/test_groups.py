"""Group-wise weights, by hand and against the adapter they stand for. O, I = outputs, inputs; L = inputs of a group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from workers.engine.training.groups import GroupLinear, packed, unpacked


def layer_of(weight_OI: Tensor, bias_O: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None)
    layer.weight.data = weight_OI
    if bias_O is not None:
        layer.bias.data = bias_O
    return layer


def random_layer(*, masked: bool, outputs: int = 24, inputs: int = 128) -> nn.Linear:
    torch.manual_seed(1)
    weight_OI = torch.randn(outputs, inputs)
    if masked:
        weight_OI *= torch.rand(outputs, inputs) < 0.5
        weight_OI[0] = 0  # groups of nothing else
    return layer_of(weight_OI, torch.randn(outputs))


def grouped(layer: nn.Linear, *, bits: int, group_size: int = 32, moved: bool = True) -> GroupLinear:
    """The layer in groups, its adapter at random values if `moved`, at zero if not."""
    group = GroupLinear(layer, bits=bits, group_size=group_size, rank=4, alpha=16)
    if moved:
        group.b_OR.data.normal_()
    return group


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packing_gives_back_what_it_got(bits: int) -> None:
    codes_OI = torch.randint(2**bits, (5, 16), generator=torch.Generator().manual_seed(0))
    bytes_OP = packed(codes_OI, bits)
    assert (bytes_OP.dtype, bytes_OP.shape) == (torch.uint8, (5, 16 * bits // 8))
    assert torch.equal(unpacked(bytes_OP, bits), codes_OI.to(torch.uint8))


def test_two_bits_by_hand() -> None:
    weight_OI = torch.tensor([[0.0, 1.4, 2.0, 3.0, 1.0, 3.0, 4.2, 7.0]])
    group = GroupLinear(layer_of(weight_OI), bits=2, group_size=4, rank=1, alpha=2)
    # The zero belongs to no group. The first is 1.4, 2, 3 in steps of 1.6 / 3 from 1.4: 2 lies nearest to the second.
    # The other goes from 1 in steps of 6 / 3: 4.2 lies nearer to 5 than to 3.
    step = 1.6 / 3
    expected_OI = torch.tensor([[0.0, 1.4, 1.4 + step, 3.0, 1.0, 3.0, 5.0, 7.0]])
    assert torch.allclose(group.merged(weight_OI), expected_OI)
    # Rank 1, alpha 2: groups of four move by 2 b a / 4.
    group.a_RG.data, group.b_OR.data = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5]])
    moved_OI = expected_OI + torch.tensor([[0.0, 0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 0.75]])
    assert torch.allclose(group.merged(weight_OI), moved_OI)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("group_size", [16, 32, 64])
def test_is_the_adapter_on_averaged_inputs(group_size: int, bits: int) -> None:
    group = grouped(random_layer(masked=False), bits=bits, group_size=group_size)
    untouched_OI = grouped(random_layer(masked=False), bits=bits, group_size=group_size, moved=False)
    x_NI = torch.randn(10, 128)
    means_NG = x_NI.view(10, -1, group_size).mean(dim=2)
    adapter_NO = 16 / 4 * means_NG @ group.a_RG.T @ group.b_OR.T
    expected_NO = untouched_OI(x_NI) + adapter_NO
    y_NO = group(x_NI)
    assert torch.allclose(y_NO, expected_NO, atol=1e-4 * expected_NO.abs().max().item())
    merged_OI = group.merged(random_layer(masked=False).weight.detach())
    assert torch.equal(linear(x_NI, merged_OI) + group.bias, y_NO), "the trained forward is the merged one, to the bit"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_an_adapter_of_zero_changes_nothing_but_the_rounding(bits: int, masked: bool) -> None:
    layer = random_layer(masked=masked)
    weight_OI = layer.weight.detach()
    merged_OI = grouped(layer, bits=bits, moved=False).merged(weight_OI)
    if bits == 16:
        assert torch.equal(merged_OI, weight_OI)
        return
    weight_OGL = weight_OI.view(24, -1, 32)
    half_OG = (weight_OGL.amax(dim=2) - weight_OGL.amin(dim=2)) / (2**bits - 1) / 2
    error_OG = (merged_OI - weight_OI).abs().view(24, -1, 32).amax(dim=2)
    assert (error_OG <= half_OG * 1.001).all()
    assert torch.equal(merged_OI == 0, weight_OI == 0)
    again = GroupLinear(layer_of(merged_OI), bits=bits, group_size=32, rank=4, alpha=16)
    assert torch.allclose(again.merged(merged_OI), merged_OI, atol=1e-6), "what is rounded stays where it is"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bits", [4, 16])
def test_gradients_are_those_of_the_weights_written_out(bits: int, masked: bool) -> None:
    layer = random_layer(masked=masked)
    group = grouped(layer, bits=bits)
    x = torch.randn(2, 5, 128, requires_grad=True)
    group(x).square().sum().backward()
    found = [x.grad, group.a_RG.grad, group.b_OR.grad]
    a_RG, b_OR = (p.detach().clone().requires_grad_() for p in (group.a_RG, group.b_OR))
    x = x.detach().requires_grad_()
    base_OI = grouped(layer, bits=bits, moved=False).merged(layer.weight.detach())
    moved_OI = base_OI + (16 / 4 / 32 * b_OR @ a_RG).repeat_interleave(32, dim=1) * (base_OI != 0)
    linear(x, moved_OI, group.bias).square().sum().backward()
    for gradient, expected in zip(found, (x.grad, a_RG.grad, b_OR.grad), strict=True):
        assert gradient is not None
        assert expected is not None
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("masked", [False, True])
def test_neither_holds_nor_keeps_weights_written_out(masked: bool) -> None:
    group = grouped(random_layer(masked=masked), bits=4)
    held = sum(p.numel() * p.element_size() for name, p in group.named_parameters() if name != "bias")
    assert not [*group.buffers()]
    # 24 x 128 codes of half a byte, a bit of mask, two floats for each of 24 x 4 groups, and the adapter's.
    assert held == 24 * 64 + (24 * 16 if masked else 0) + 2 * 4 * 24 * 4 + 4 * 4 * (4 + 24)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        group(torch.randn(3, 128, requires_grad=True))
    assert max(kept) < 24 * 128

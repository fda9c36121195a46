"""Zeros by masks of bits: torch's own `masked_fill` to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.engine.maths.masking import zero_, zeroed

TYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64


def numbers(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers of all kinds, each once kept and once not; those that go."""
    kinds = torch.tensor([1.5, -2.0, 0.0, -0.0, torch.inf, -torch.inf, torch.nan, 6e-8], dtype=dtype)
    gone = torch.tensor([True, False]).repeat_interleave(len(kinds))
    return torch.cat([kinds, kinds]).reshape(4, 4), gone.reshape(4, 4)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_goes_is_zero_and_what_stays_keeps_its_bits(dtype: torch.dtype) -> None:
    tensor, gone = numbers(dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    found = zeroed(tensor, gone)
    assert found.view(bits).equal(tensor.masked_fill(gone, 0).view(bits))
    assert found.view(bits)[gone].eq(0).all()
    assert found.data_ptr() != tensor.data_ptr()
    assert zero_(tensor, gone) is tensor
    assert tensor.view(bits).equal(found.view(bits))


def test_a_transposed_view_is_written_where_it_lies() -> None:
    base_IO, gone_IO = torch.randn(3, 4), torch.rand(3, 4) < 0.5
    expected_IO = base_IO.masked_fill(gone_IO, 0)
    assert zeroed(base_IO.T, gone_IO.T).equal(expected_IO.T)
    zero_(base_IO.T, gone_IO.T)
    assert base_IO.equal(expected_IO)


def test_a_parameter_that_trains_can_be_masked_in_place() -> None:
    parameter, gone = torch.nn.Parameter(torch.ones(2, 2)), torch.eye(2, dtype=torch.bool)
    with torch.no_grad():
        zero_(parameter, gone)
    assert parameter.tolist() == [[0, 1], [1, 0]]
    parameter.sum().backward()
    assert parameter.grad is not None


def test_masks_that_are_spread_over_rows_are_torchs_work() -> None:
    tensor, gone_I = torch.ones(2, 2), torch.tensor([True, False])
    assert zeroed(tensor, gone_I).tolist() == [[0, 1], [0, 1]]
    assert zero_(tensor, gone_I).tolist() == [[0, 1], [0, 1]]

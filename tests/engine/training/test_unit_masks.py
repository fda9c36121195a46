"""A model with factors on its units computes what it does with the same factors multiplied into the weights."""

from __future__ import annotations

import pytest
import torch
from transformers import PretrainedConfig

from tests.helpers.in_memory import GPT2, LLAMA, InMemory, ids_of, in_memory
from workers.engine.architectures.coupled import block_families
from workers.engine.training.unit_masks import UnitMasks

CONFIGS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["grouped queries", "fused and transposed"])


def logits(found: InMemory) -> torch.Tensor:
    with torch.no_grad():
        return found.model(input_ids=ids_of(found), use_cache=False).logits


def masks_of(found: InMemory) -> UnitMasks:
    return UnitMasks(found.model, found.architecture, found.families)


@CONFIGS
def test_ones_change_nothing_and_removed_hooks_leave_nothing(config: PretrainedConfig) -> None:
    found = in_memory(config)
    dense = logits(found)
    masks = masks_of(found)
    assert torch.equal(logits(found), dense)
    for factors_U in masks.values.values():
        factors_U.zero_()
    assert not torch.equal(logits(found), dense)
    masks.remove()
    assert torch.equal(logits(found), dense)


@CONFIGS
def test_a_factor_is_that_of_the_columns_that_read_the_unit(config: PretrainedConfig) -> None:
    found = in_memory(config)
    masks = masks_of(found)
    assert set(masks.values) == {(block, kind) for block in range(2) for kind in ("head", "channel")}
    torch.manual_seed(3)
    for factors_U in masks.values.values():
        factors_U.copy_(torch.rand(len(factors_U)))
        factors_U[0] = 0
    masked = logits(found)
    masks.remove()
    for family in found.families:
        weight_OI = found.reader(family)
        factors_U = masks.values[family.block, family.kind]
        width = weight_OI.shape[1] // family.units
        by_hand_I = torch.cat([factor.expand(width) for factor in factors_U])
        found.write(family.reader.tensor, weight_OI * by_hand_I)
    assert torch.allclose(logits(found), masked, atol=1e-6)


@CONFIGS
def test_a_removed_unit_gets_no_gradient_in_any_of_its_tensors(config: PretrainedConfig) -> None:
    found = in_memory(config)
    masks = masks_of(found)
    family = found.families[0]
    masks.values[family.block, family.kind][1] = 0
    found.model(input_ids=ids_of(found), use_cache=False).logits.square().sum().backward()
    for name, parameter in found.model.named_parameters():
        assert parameter.grad is not None, name
        parameter.data = parameter.grad
    for member in family.members:
        by_unit = found.read(member.tensor).movedim(member.axis, 0).reshape(family.units, -1)
        assert by_unit[1].count_nonzero() == 0, member
        if not member.tensor.endswith("bias"):  # a key's gets none: the softmax is the same
            assert by_unit[0].count_nonzero() > 0, member


@CONFIGS
def test_a_layer_without_its_factor_is_a_model_without_the_layer(config: PretrainedConfig) -> None:
    found = in_memory(config)
    dense = logits(found)
    masks = UnitMasks(found.model, found.architecture, block_families(found.architecture))
    assert torch.equal(logits(found), dense)
    masks.values[0, "layer"].zero_()
    masked = logits(found)
    masks.remove()
    blocks = found.model.get_submodule(found.architecture.layout.blocks)
    del blocks[0]
    assert torch.equal(logits(found), masked)


def test_factors_get_gradients_and_take_the_type_of_the_inputs() -> None:
    found = in_memory(LLAMA)
    found.model.bfloat16()
    masks = masks_of(found)
    key, factors_U = next(iter(masks.values.items()))
    masks.values[key] = torch.ones(len(factors_U), requires_grad=True)
    out = found.model(input_ids=ids_of(found), use_cache=False).logits
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    gradient_U = masks.values[key].grad
    assert gradient_U is not None
    assert (gradient_U != 0).all()

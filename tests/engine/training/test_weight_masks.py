"""Masks of parameters, by hand: exact counts, several layers in one parameter, transposed ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers import mixtures
from tests.helpers.procedures import llama, target_of
from workers.engine.architectures.recognise import recognise
from workers.engine.files.safetensors_bytes import read_header
from workers.engine.model.views import held
from workers.engine.training.weight_masks import WeightMasks


@pytest.mark.parametrize(("sparsity", "kept_of"), [(0.37, None), (0.5, (2, 4)), (0.75, (2, 8))])
def test_as_many_go_as_are_to_and_the_smallest(sparsity: float, kept_of: tuple[int, int] | None) -> None:
    model, architecture = llama()
    target = target_of(architecture, sparsity, kept_of)
    masks = WeightMasks(model, architecture, target)
    sizes = masks.sizes()
    total = sum(target.counts.values())
    assert masks.take(sizes) == total
    assert masks.take(sizes) == 0, "the same ones again"
    for layer in architecture.layers:
        gone_OI, size_OI = masks.gone[layer.weight], sizes[layer.weight]
        assert int(gone_OI.sum()) == target.counts[layer.name]
        if kept_of is None:
            assert size_OI[gone_OI].max() <= size_OI[~gone_OI].min()
        else:
            assert (gone_OI.view(-1, kept_of[1]).sum(dim=1) == kept_of[1] - kept_of[0]).all()
    assert masks.share == total / architecture.prunable_parameters
    masks.take(sizes, 0.5)
    for layer in architecture.layers:
        of_each = target.counts[layer.name] if kept_of is None else kept_of[1] - kept_of[0]
        counted = masks.gone[layer.weight].reshape(-1, layer.parameters if kept_of is None else kept_of[1]).sum(dim=1)
        assert (counted == of_each // 2).all(), "rounded down"


def test_what_is_hidden_is_shown_again() -> None:
    model, architecture = llama()
    masks = WeightMasks(model, architecture, target_of(architecture, 0.5))
    masks.take(masks.sizes())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with masks.applied():
        for layer in architecture.layers:
            assert torch.equal(model.get_parameter(layer.weight) == 0, masks.gone[layer.weight])
        assert torch.equal(model.get_parameter("model.embed_tokens.weight"), before["model.embed_tokens.weight"])
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=16))


@pytest.mark.parametrize("made", [gpt2, partial(mixtures.tiny, "mixtral"), partial(mixtures.tiny, "gpt_oss")])
def test_groups_are_of_inputs_where_parameters_are_transposed_or_shared(
    made: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """GPT-2 holds query, key and value in one tensor [I, O], mixtures all experts' in one, [E, O, I] or [E, I, O]."""
    model = made()
    model.save_pretrained(tmp_path)
    stored = {name: piece.facts for name, piece in read_header(tmp_path / "model.safetensors").items()}
    architecture = recognise(model.config.to_dict(), stored)
    masks = WeightMasks(model, architecture, target_of(architecture, 0.5, (2, 4)))
    masks.take(masks.sizes())
    assert len(masks.parameters) < len(architecture.layers)
    places = held(model, architecture)
    for layer in architecture.layers:
        at = places[layer.weight]
        gone_OI = at.read(masks.gone[at.parameter])
        assert gone_OI.shape == layer.shape
        assert (gone_OI.reshape(-1, 4).sum(dim=1) == 2).all()

"""Gates on small random models: without chance they are the merged model. D = hidden dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, OPTConfig, Phi3Config, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.families.checkpoints import tiny_config
from tests.helpers.in_memory import GPT2, LLAMA, InMemory, ids_of, in_memory, logits, units, write
from workers.engine.checks.trace import left_out
from workers.engine.maths.hard_concrete import drawn
from workers.engine.training.gates import Gates

TIED = LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": True})
PHI3 = Phi3Config(
    vocab_size=64, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, max_position_embeddings=32, pad_token_id=0,
)  # fmt: skip
"""Two matrices hold several."""
OPT = OPTConfig(
    vocab_size=64, hidden_size=24, ffn_dim=20, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=24,
    max_position_embeddings=32,
)  # fmt: skip


def gated(found: InMemory, *kinds: str) -> Gates:
    """With gates of random alphas."""
    torch.manual_seed(1)
    gates = Gates(found.model, found.architecture, units(found, *kinds))
    for alpha_N in gates.alphas.values():
        alpha_N.data.normal_(1.0, 1.0)
    return gates


def every_third(gates: Gates) -> dict[Any, Tensor]:
    return {row: torch.arange(len(alpha_N)) % 3 == 1 for row, alpha_N in gates.alphas.items()}


def without(found: InMemory, closed: Mapping[Any, Tensor], name: str, tensor: Tensor) -> Tensor:
    """A tensor with zeros where it writes into closed hidden dimensions, or from a closed layer."""
    layout = found.architecture.layout
    hidden_D = closed.get((None, "hidden"), torch.zeros(24, dtype=torch.bool))
    if name == layout.embedding_weight:
        return tensor * ~hidden_D
    writers = {layer.name: layer.block for layer in found.architecture.writing("hidden")}
    if (module := name.rpartition(".")[0]) in writers:
        layers = closed.get((None, "layer"), torch.zeros(2, dtype=torch.bool))
        return (tensor.T * ~hidden_D * ~layers[writers[module]]).T
    return tensor


@pytest.mark.parametrize("config", [LLAMA, GPT2, OPT, PHI3], ids=["llama", "gpt2", "opt", "phi3"])
def test_heads_and_channels_without_chance_are_the_merged_model(config: PretrainedConfig) -> None:
    found = in_memory(config)
    whole_BTV = logits(found)
    gates = gated(found, "head", "channel")
    closed = every_third(gates)
    with gates.settled(closed):
        expected_BTV = logits(found)
    assert (whole_BTV - expected_BTV).abs().max() > 1e-3 * whole_BTV.abs().max(), "gates that do nothing"
    write(found, gates.merged(closed))
    assert (logits(found) - expected_BTV).abs().max() < 1e-5 * expected_BTV.abs().max()
    for row, (family,) in gates.rows.items():
        read_OI = found.reader(family)
        gone_N = (read_OI.view(len(read_OI), family.units, -1) == 0).all(dim=2).all(dim=0)
        assert torch.equal(gone_N, closed[row])


@pytest.mark.parametrize("family", ["doge", "openai-gpt"])
def test_a_closed_layer_passes_on_what_it_reads_where_zeros_would_not(family: str) -> None:
    found = in_memory(tiny_config(family))
    gates = gated(found, "layer")
    closed = {(None, "layer"): torch.arange(found.architecture.blocks) == 1}
    with gates.settled(closed):
        expected_BTV = logits(found)
    with left_out(found.model, found.architecture.layout, [1]):
        assert (logits(found) - expected_BTV).abs().max() < 1e-5 * expected_BTV.abs().max()


@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["llama", "tied"])
@pytest.mark.parametrize("kinds", [("hidden",), ("layer",), ("head", "channel", "hidden", "layer")])
def test_all_kinds_without_chance_are_the_merged_model_with_zeros(
    config: PretrainedConfig, kinds: tuple[str, ...]
) -> None:
    found = in_memory(config)
    whole_BTV = logits(found)
    gates = gated(found, *kinds)
    closed, merge = every_third(gates), gates.merged(every_third(gates))
    with gates.settled(closed):
        expected_BTV = logits(found)
    assert (whole_BTV - expected_BTV).abs().max() > 1e-3 * whole_BTV.abs().max(), "gates that do nothing"
    write(found, lambda name, tensor: without(found, closed, name, merge(name, tensor)))
    assert (logits(found) - expected_BTV).abs().max() < 1e-5 * expected_BTV.abs().max()


def test_a_norm_of_open_dimensions_is_that_of_the_narrower_model() -> None:
    found = in_memory(LLAMA)
    gates = gated(found, "hidden")
    closed_D = torch.arange(24) % 4 == 0
    norm = found.model.model.norm
    norm.weight.data.normal_()
    x_BTD = torch.randn(2, 5, 24) * ~closed_D
    narrow = LlamaRMSNorm(18, eps=norm.variance_epsilon * 24 / 18)
    narrow.weight = nn.Parameter(norm.weight[~closed_D])
    with gates.settled({(None, "hidden"): closed_D}):
        logits(found)  # sets the gates
    found_BTD = norm(x_BTD)
    assert torch.allclose(found_BTD[..., ~closed_D], narrow(x_BTD[..., ~closed_D]), rtol=1e-6, atol=1e-7)


def test_until_they_are_drawn_all_are_open_and_then_as_drawn_by_the_seed() -> None:
    found = in_memory(LLAMA)
    dense_BTV = logits(found)
    gates = gated(found, "head", "channel", "hidden", "layer")
    assert torch.equal(logits(found), dense_BTV)
    drawn_ = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        gates.draw()
        drawn_.append(logits(found))
    assert torch.equal(drawn_[0], drawn_[1])
    assert not torch.equal(drawn_[0], drawn_[2])


@pytest.mark.parametrize("checkpointed", [False, True])
def test_each_part_of_a_step_has_the_gradient_of_the_gates_as_drawn(checkpointed: bool) -> None:
    found = in_memory(LLAMA)
    gates = gated(found, "head", "channel", "hidden", "layer")
    if checkpointed:
        found.model.train()
        found.model.activation_checkpointing_enable()
    gates.draw()
    for _ in range(2):  # a step's windows go through in parts, each with a backward pass of its own
        found.model(input_ids=ids_of(found), use_cache=False).logits.square().mean().backward()
    for row, alpha_N in gates.alphas.items():
        z_N = drawn(alpha_N, gates._noise[row]).detach()
        assert alpha_N.grad is not None
        assert torch.equal(alpha_N.grad != 0, (z_N > 0) & (z_N < 1))

"""A mixture computed expert by expert: the block's own output, and each expert's inputs by the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GptOssConfig, Llama4TextConfig, MixtralConfig, Qwen2MoeConfig

from workers.engine.errors import UnsupportedModel
from workers.engine.model.expert_streams import by_expert

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "num_experts_per_tok": 2, "pad_token_id": None,
}  # fmt: skip
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES, num_experts=4, moe_intermediate_size=12, shared_expert_intermediate_size=8, norm_topk_prob=True
    ),
    "gpt_oss": GptOssConfig(**SIZES, num_local_experts=4, layer_types=["full_attention"]),
    "llama4_text": Llama4TextConfig(**SIZES, num_local_experts=4, intermediate_size_mlp=12),
}
TOKENS = 40


def mixture(family: str) -> tuple[nn.Module, nn.Module]:
    """(the mixture of a tiny model, the module of its experts)."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    around = next(module for module in model.modules() if hasattr(module, "experts"))
    return around, around.experts


def output_of(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_output_is_the_blocks_own_and_streams_are_those_of_the_routed_tokens(family: str, *, every: bool) -> None:
    around, experts = mixture(family)
    hidden_BTD = torch.randn(2, TOKENS // 2, 16)
    expected = output_of(around(hidden_BTD)).flatten(0, -2)
    routed: list[Any] = []
    gate = around.gate if hasattr(around, "gate") else around.router
    handle = gate.register_forward_hook(lambda _, __, output: routed.append(output))
    streams: dict[str, Tensor] = {}
    with by_expert(experts, streams.__setitem__, every=every):
        found = output_of(around(hidden_BTD)).flatten(0, -2)
    handle.remove()
    assert "forward" not in vars(experts)
    # Sums over experts in another order, float32.
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    hidden_TD = hidden_BTD.flatten(0, 1)
    if family == "llama4_text":
        weight_TE = routed[0][0]
        sent_TE = weight_TE != 0
    else:
        sent_TE = torch.zeros(TOKENS, 4, dtype=torch.bool).scatter_(1, routed[0][2], value=True)
        weight_TE = torch.ones(TOKENS, 4)
    assert streams.keys() == {f"expert_{e}_{side}" for e in range(4) for side in ("input", "hidden")}
    for expert in range(4):
        inputs_TD = hidden_TD * weight_TE[:, expert, None]
        wanted = inputs_TD if every else inputs_TD[sent_TE[:, expert]]
        assert torch.equal(streams[f"expert_{expert}_input"], wanted)
        assert len(streams[f"expert_{expert}_hidden"]) == len(wanted)


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_are_read_when_an_experts_turn_comes(family: str) -> None:
    """As pruning needs: `down_proj` of an expert is changed after its inputs were seen, before its output is made."""
    around, experts = mixture(family)
    hidden_BTD = torch.randn(1, TOKENS, 16)

    def halved(stream: str, _: Tensor) -> None:
        if stream == "expert_1_hidden":
            experts.down_proj[1] *= 0.5

    with by_expert(experts, halved, every=False):
        found = output_of(around(hidden_BTD))
    expected = output_of(around(hidden_BTD))  # with the changed weights from the start
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_an_expert_without_tokens_has_empty_streams() -> None:
    around, experts = mixture("mixtral")
    around.gate.weight[3] = 0
    around.gate.weight[:3] = 100 * torch.eye(3, 16)
    hidden_BTD = torch.rand(1, TOKENS, 16) + 0.5
    streams: dict[str, Tensor] = {}
    with by_expert(experts, streams.__setitem__, every=False):
        around(hidden_BTD)
    assert streams["expert_3_input"].shape == (0, 16)
    assert streams["expert_3_hidden"].shape == (0, 12)


def test_experts_of_an_unknown_kind_are_refused() -> None:
    with (
        pytest.raises(UnsupportedModel, match="Linear: experts that are computed in a way"),
        by_expert(nn.Linear(2, 2), lambda *_: None, every=False),
    ):
        pass

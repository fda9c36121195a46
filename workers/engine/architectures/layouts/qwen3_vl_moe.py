"""Qwen3-VL-MoE's layout: Qwen's mixture, all experts' matrices of a block in two tensors; released files turn them."""

from dataclasses import replace

from workers.engine.architectures.layouts import mixture
from workers.engine.architectures.parts import experts, gated

LAYOUT = replace(
    mixture.LAYOUT,
    name="Qwen3-VL-MoE",
    model_types=("qwen3_vl_moe_text",),
    mlps=(
        gated("mlp", "gate_proj", "up_proj", "down_proj"),
        experts("mlp", "experts.{}.gate_proj", "experts.{}.up_proj", "experts.{}.down_proj"),
    ),
    stored=mixture.LAYOUT.in_modules,
    renamed_in=(),
    may_turn=True,
)

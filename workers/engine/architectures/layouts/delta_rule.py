"""Attention and the gated delta rule in turn, with Llama's names: Qwen3-Next, Qwen3.5, OLMo-Hybrid.

In Qwen's attention the query projection has a gate beside each head.
"""

from dataclasses import replace

from workers.engine.architectures.layouts import mixture
from workers.engine.architectures.mixers import recurrent
from workers.engine.architectures.parts import attention, fused

_CONVOLUTIONS = ("q_conv1d", "k_conv1d", "v_conv1d")
_INPUTS = (("in_proj_qkvz", "in_proj_ba"), ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"))

LAYOUT = replace(
    mixture.LAYOUT,
    name="attention and delta rule",
    mixers=(
        attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        *(recurrent("linear_attn", inputs, "out_proj", kept=("conv1d",)) for inputs in _INPUTS),
        recurrent(
            "linear_attn",
            ("q_proj", "k_proj", "v_proj", "b_proj", "a_proj", "g_proj"),
            "o_proj",
            kept=_CONVOLUTIONS,
        ),
    ),
    of_each_head=("q_norm", "k_norm", "rotary_emb"),
    built=(
        *mixture.LAYOUT.in_modules,
        *fused("linear_attn.conv1d", tuple(f"linear_attn.{name}" for name in _CONVOLUTIONS)),
    ),
    renamed_in=(
        (
            "olmo_hybrid",
            (("attention_layer_norm", "input_layernorm"), ("feedforward_layer_norm", "post_attention_layernorm")),
        ),
    ),
)

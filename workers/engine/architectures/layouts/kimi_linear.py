"""Kimi Linear's layout: a delta rule with a gate for each dimension, and latent attention, in turn."""

from workers.engine.architectures.architecture import Layout, Part, Projection
from workers.engine.architectures.layouts.mixtral import LAYOUT as _MIXTRAL
from workers.engine.architectures.mixers import STATE, latent_attention
from workers.engine.architectures.parts import experts, fused, gated, shared_mlp

_MLP = "block_sparse_moe"
_CONVOLUTIONS = tuple(f"self_attn.{name}_conv1d" for name in "qkv")
_OF_FORGETTING = ("f_a_proj", "f_b_proj", "A_log", "dt_bias")

_DELTA = Part(
    "self_attn",
    (
        *(
            Projection(f"self_attn.{name}", "state_input", "hidden", STATE)
            for name in ("q_proj", "k_proj", "v_proj", "f_a_proj", "b_proj", "g_a_proj")
        ),
        Projection("self_attn.f_b_proj", "forgetting", STATE, STATE),
        Projection("self_attn.g_b_proj", "gating", STATE, STATE),
        Projection("self_attn.o_proj", "state_output", STATE, "hidden"),
    ),
    kept=(*_CONVOLUTIONS, "self_attn.A_log"),
)

LAYOUT = Layout(
    name="Kimi Linear",
    model_types=("kimi_linear",),
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(_DELTA, *(latent_attention(query_latent=of_latent) for of_latent in (True, False))),
    mlps=(
        *(gated(module, "gate_proj", "up_proj", "down_proj") for module in (_MLP, "mlp")),
        experts(
            _MLP,
            "experts.{}.w1",
            "experts.{}.w3",
            "experts.{}.w2",
            routers=("gate.weight", "gate.e_score_correction_bias"),
            shared=shared_mlp(f"{_MLP}.shared_experts"),
        ),
    ),
    built=(
        *_MIXTRAL.in_modules,
        *fused("self_attn.conv1d", _CONVOLUTIONS),
    ),
    renamed=(
        (_MLP, "mlp"),
        *((f"self_attn.{name}", f"self_attn.forget_gate.{name}") for name in _OF_FORGETTING),
    ),
)

"""Qwen's and DeepSeek's layout of a mixture: Llama's names, experts one by one in the files, perhaps a shared MLP.

Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek, GLM-4.5, dots.1, ERNIE 4.5, Hunyuan and others; first blocks may be dense.
"""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, experts, gated, shared_mlp, stacked

_GATE, _UP, _DOWN = (f"mlp.experts.{{}}.{name}" for name in ("gate_proj", "up_proj", "down_proj"))
_ROUTERS = (
    "gate.weight",
    "gate.e_score_correction_bias",
    "gate.wg.weight",
    "router.gate.weight",
    "e_score_correction_bias",
    "expert_bias",
    "experts.e_score_correction_bias",
    "gate.expert_bias",
)
"""Tensors of the families' routers that have an entry for each expert."""
_SHARED = (None, "mlp.shared_expert", "mlp.shared_experts", "mlp.shared_mlp")

LAYOUT = Layout(
    name="mixture with Llama's names",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=tuple(
        attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", gate) for gate in (None, "gate_proj", "g_proj")
    ),
    mlps=(
        gated("mlp", "gate_proj", "up_proj", "down_proj"),
        *(
            experts(
                "mlp",
                "experts.{}.gate_proj",
                "experts.{}.up_proj",
                "experts.{}.down_proj",
                routers=_ROUTERS,
                shared=None if shared is None else shared_mlp(shared),
                kept=("mlp.shared_expert_gate", "mlp.moe_statics.e_score_correction_bias"),
                others=(("mlp.moe_statics.e_score_correction_bias", 1), ("moe.router.expert_bias", 0)),
            )
            for shared in _SHARED
        ),
    ),
    of_each_head=("q_norm", "k_norm", "query_layernorm", "key_layernorm", "rotary_emb"),
    built=(
        stacked("mlp.experts.gate_up_proj", (_GATE, _UP)),
        stacked("mlp.experts.down_proj", (_DOWN,)),
    ),
    renamed_in=(
        ("exaone_moe", (("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),)),
        ("ernie4_5_moe", (("mlp.moe_statics", "mlp.gate.moe_statics"),)),
        (
            "hy_v3",
            (
                ("mlp.router.gate", "mlp.gate"),
                ("mlp.expert_bias", "mlp.e_score_correction_bias"),
                ("mlp.shared_mlp", "mlp.shared_experts"),
            ),
        ),
        (
            "laguna",
            (
                ("mlp.experts.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
                ("mlp.shared_expert", "mlp.shared_experts"),
            ),
        ),
        (
            "kolibri1",
            (
                ("moe.router.expert_bias", "mlp.gate.e_score_correction_bias"),
                ("post_attn_norm", "post_self_attn_layernorm"),
                ("post_ffn_norm", "post_mlp_layernorm"),
            ),
        ),
        ("mimo_v2_flash", (("self_attn.attention_sink_bias", "self_attn.sinks"),)),
        ("flint", (("self_attn.softmax_offset", "self_attn.sinks"),)),
    ),
)

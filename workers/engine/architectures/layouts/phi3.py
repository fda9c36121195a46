"""Phi-3's layout (Phi-4 too): Llama's blocks with queries, keys and values in one matrix, gate and up in another."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, gated

LAYOUT = Layout(
    name="Phi-3",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),),
    mlps=(gated("mlp", "gate_proj", "up_proj", "down_proj"),),
    stored=(
        *fused(
            "self_attn.qkv_proj",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("query", "key", "key"),
        ),
        *fused("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
    ),
)

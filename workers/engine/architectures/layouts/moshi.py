"""Moshi's layout, of its text decoder: gate and up in one matrix."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, gated

LAYOUT = Layout(
    name="Moshi",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj.linear", "k_proj.linear", "v_proj.linear", "o_proj.linear"),),
    mlps=(gated("mlp", "gate_proj", "up_proj", "fc2"),),
    stored=fused("mlp.fc1", ("mlp.gate_proj", "mlp.up_proj")),
)

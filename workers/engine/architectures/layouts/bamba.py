"""Bamba's layout: Mamba 2 and attention in turn, or as in Falcon-H1 side by side in each block."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.mixers import both, dual
from workers.engine.architectures.parts import attention, gated

_ATTENTION = attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj")

LAYOUT = Layout(
    name="Bamba",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.final_layernorm",
    head="lm_head",
    mixers=(_ATTENTION, dual("mamba"), both(_ATTENTION, dual("mamba"))),
    mlps=(gated("feed_forward", "gate_proj", "up_proj", "down_proj"),),
    of_each_head=("rotary_emb",),
    returns_tuple=True,
)

"""Persimmon's layout: queries, keys and values of a head lie together, head by head."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, plain

LAYOUT = Layout(
    name="Persimmon",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.final_layernorm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "dense"),),
    mlps=(plain("mlp", "dense_h_to_4h", "dense_4h_to_h"),),
    of_each_head=("q_layernorm", "k_layernorm"),
    stored=fused(
        "self_attn.query_key_value",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("head",),
        repeats=True,
    ),
)

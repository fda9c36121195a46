"""The layout of GPT-NeoX Japanese: GPT-NeoX's under other paths; its last block alone has a bias in its attention."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, plain

LAYOUT = Layout(
    name="GPT-NeoX Japanese",
    blocks="gpt_neox_japanese.layers",
    embedding="gpt_neox_japanese.embed_in",
    final_norm="gpt_neox_japanese.final_layer_norm",
    head="embed_out",
    mixers=(attention("attention", "q_proj", "k_proj", "v_proj", "dense"),),
    mlps=(plain("mlp", "dense_h_to_4h", "dense_4h_to_h"),),
    stored=fused(
        "attention.query_key_value",
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        ("head",),
        repeats=True,
    ),
    returns_tuple=True,
)

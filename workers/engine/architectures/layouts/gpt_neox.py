"""GPT-NeoX's layout (Pythia, Dolly, StableLM-alpha, RedPajama): queries, keys and values of a head lie together.

Attention and MLP run beside each other, each on a norm of its own, or one after the other.
"""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, plain

LAYOUT = Layout(
    name="GPT-NeoX",
    blocks="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
    mixers=(attention("attention", "q_proj", "k_proj", "v_proj", "dense"),),
    mlps=(plain("mlp", "dense_h_to_4h", "dense_4h_to_h"),),
    stored=fused(
        "attention.query_key_value",
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        ("head",),
        repeats=True,
    ),
    moved=(("embed_out", "lm_head"),),
)

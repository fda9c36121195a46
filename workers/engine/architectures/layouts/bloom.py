"""The layout of BLOOM and Falcon: the queries that share a key lie together with it and its values.

In BLOOM and the first Falcons a key belongs to one query, in Falcon-7B to all, in the later ones to a group.
"""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, plain

LAYOUT = Layout(
    name="BLOOM",
    blocks="transformer.h",
    embedding="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    head="lm_head",
    mixers=(attention("self_attention", "q_proj", "k_proj", "v_proj", "dense"),),
    mlps=(plain("mlp", "dense_h_to_4h", "dense_4h_to_h"),),
    stored=fused(
        "self_attention.query_key_value",
        ("self_attention.q_proj", "self_attention.k_proj", "self_attention.v_proj"),
        ("group", "head", "head"),
        repeats=True,
    ),
    returns_tuple=True,
)

"""Latent attention with Llama's names: keys and values are made of a latent, in DeepSeek's models queries too.

MiniCPM3, Youtu; with mixtures DeepSeek V2 and V3, GLM-4.7-Flash, A.X K1.
"""

from dataclasses import replace

from workers.engine.architectures.layouts import mixture
from workers.engine.architectures.mixers import latent_attention

LAYOUT = replace(
    mixture.LAYOUT,
    name="latent attention",
    mixers=tuple(latent_attention(query_latent=of_latent) for of_latent in (True, False)),
    of_each_head=("rotary_emb",),
    renamed_in=(("axk1", (("post_mlp_layernorm", "mlp.post_mlp_layernorm"),)),),
)

"""GPT-BigCode's layout (StarCoder, SantaCoder): the queries that share a key lie together with it and its values."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, plain

LAYOUT = Layout(
    name="GPT-BigCode",
    blocks="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    head="lm_head",
    mixers=(attention("attn", "q_proj", "k_proj", "v_proj", "c_proj"),),
    mlps=(plain("mlp", "c_fc", "c_proj"),),
    stored=fused("attn.c_attn", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), ("group", "head", "head"), repeats=True),
    model_types=("gpt_bigcode",),
)

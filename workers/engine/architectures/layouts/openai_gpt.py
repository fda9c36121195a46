"""The layout of the first GPT: GPT-2's blocks with norms after the parts, and none after the last block."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain, transposed

LAYOUT = Layout(
    name="GPT",
    blocks="transformer.h",
    embedding="transformer.tokens_embed",
    final_norm="",
    head="lm_head",
    mixers=(attention("attn", "q_proj", "k_proj", "v_proj", "c_proj"),),
    mlps=(plain("mlp", "c_fc", "c_proj"),),
    stored=(
        *transposed("attn.c_attn", ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
        *transposed("attn.c_proj"),
        *transposed("mlp.c_fc"),
        *transposed("mlp.c_proj"),
    ),
    returns_tuple=True,
    model_types=("openai-gpt",),
)

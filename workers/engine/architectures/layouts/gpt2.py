"""GPT-2's layout: matrices lie as [I, O] (transformers' Conv1D), queries, keys and values in one."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain, transposed

LAYOUT = Layout(
    name="GPT-2",
    blocks="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    head="lm_head",
    mixers=(attention("attn", "q_proj", "k_proj", "v_proj", "c_proj"),),
    mlps=(plain("mlp", "c_fc", "c_proj"),),
    stored=(
        *transposed("attn.c_attn", ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
        *transposed("attn.c_proj"),
        *transposed("mlp.c_fc"),
        *transposed("mlp.c_proj"),
    ),
    model_types=("gpt2", "gpt-sw3"),
)

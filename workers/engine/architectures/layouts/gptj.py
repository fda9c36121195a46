"""GPT-J's layout: attention and MLP read one norm's output, and both add to the same hidden vector."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain

LAYOUT = Layout(
    name="GPT-J",
    blocks="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    head="lm_head",
    mixers=(attention("attn", "q_proj", "k_proj", "v_proj", "out_proj"),),
    mlps=(plain("mlp", "fc_in", "fc_out", stream="attention_input"),),
    returns_tuple=True,
)

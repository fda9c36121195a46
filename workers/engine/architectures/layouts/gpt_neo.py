"""GPT-Neo's layout: four linear layers of attention in a module of their own, an MLP without a gate."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain

LAYOUT = Layout(
    name="GPT-Neo",
    blocks="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    head="lm_head",
    mixers=(attention("attn.attention", "q_proj", "k_proj", "v_proj", "out_proj"),),
    mlps=(plain("mlp", "c_fc", "c_proj"),),
    returns_tuple=True,
)

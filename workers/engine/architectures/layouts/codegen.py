"""CodeGen's layout: GPT-J's blocks, with queries, values and keys, in this order, of a quarter of the heads together.

The quarters are those of the four TPUs that it was trained on.
"""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, plain

LAYOUT = Layout(
    name="CodeGen",
    blocks="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    head="lm_head",
    mixers=(attention("attn", "q_proj", "k_proj", "v_proj", "out_proj"),),
    mlps=(plain("mlp", "fc_in", "fc_out", stream="attention_input"),),
    stored=fused("attn.qkv_proj", ("attn.q_proj", "attn.v_proj", "attn.k_proj"), ("quarter",), repeats=True),
    returns_tuple=True,
)

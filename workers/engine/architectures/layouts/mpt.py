"""MPT's layout: queries, keys and values in one matrix, an MLP without a gate; positions are ALiBi's slopes."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, plain

LAYOUT = Layout(
    name="MPT",
    blocks="transformer.blocks",
    embedding="transformer.wte",
    final_norm="transformer.norm_f",
    head="lm_head",
    mixers=(attention("attn", "q_proj", "k_proj", "v_proj", "out_proj"),),
    mlps=(plain("ffn", "up_proj", "down_proj"),),
    stored=fused("attn.Wqkv", ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
    returns_tuple=True,
)

"""Doge's layout: Llama's, with a layer that makes the mask of the attention from the values, which is not pruned."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, gated

LAYOUT = Layout(
    name="Doge",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", kept=("dt_proj",)),),
    mlps=(gated("mlp", "gate_proj", "up_proj", "down_proj"),),
    of_each_head=("q_norm", "k_norm", "rotary_emb"),
    model_types=("doge",),
)

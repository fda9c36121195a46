"""XGLM's layout: OPT's blocks under other paths, with sinusoidal positions."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain

LAYOUT = Layout(
    name="XGLM",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.layer_norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),),
    mlps=(plain("", "fc1", "fc2"),),
)

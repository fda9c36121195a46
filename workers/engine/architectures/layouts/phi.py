"""Phi's layout (1, 1.5 and 2): attention and MLP read one norm's output, and both add to the same hidden vector."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain

LAYOUT = Layout(
    name="Phi",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.final_layernorm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "dense"),),
    mlps=(plain("mlp", "fc1", "fc2", stream="attention_input"),),
)

"""Llama's attention with an MLP that has no gate: Nemotron, Arcee, Apertus, Jais 2, nanochat, StarCoder 2."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain

LAYOUT = Layout(
    name="Nemotron",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),),
    mlps=(
        plain("mlp", "up_proj", "down_proj"),
        plain("mlp", "fc1", "fc2"),
        plain("mlp", "c_fc", "c_proj"),
    ),
)

"""BioGPT's layout: OPT's blocks under other paths."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain

LAYOUT = Layout(
    name="BioGPT",
    blocks="biogpt.layers",
    embedding="biogpt.embed_tokens",
    final_norm="biogpt.layer_norm",
    head="output_projection",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),),
    mlps=(plain("", "fc1", "fc2"),),
)

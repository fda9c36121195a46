"""GLM's and GLM-4's layout: Llama's blocks with gate and up in one matrix; GLM-4 has norms after the parts too."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, gated

LAYOUT = Layout(
    name="GLM",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),),
    mlps=(gated("mlp", "gate_proj", "up_proj", "down_proj"),),
    stored=fused("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
)

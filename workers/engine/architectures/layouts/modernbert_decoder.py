"""The layout of ModernBERT's decoder (Ettin): gate and up in one matrix, a dense layer and a norm before the head."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, fused, gated

LAYOUT = Layout(
    name="ModernBERT",
    blocks="model.layers",
    embedding="model.embeddings.tok_embeddings",
    final_norm="model.final_norm",
    head="decoder",
    mixers=(attention("attn", "q_proj", "k_proj", "v_proj", "Wo"),),
    mlps=(gated("mlp", "gate_proj", "up_proj", "Wo"),),
    stored=fused("mlp.Wi", ("mlp.gate_proj", "mlp.up_proj")),
    after=("lm_head",),
)

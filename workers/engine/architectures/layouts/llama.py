"""Llama's layout: seven linear layers in a block, reading four input streams.

Llama, Mistral, Qwen2 (with biases), Qwen3 (with query and key norms), SmolLM, Gemma and others. Cohere's
larger models have a norm of its own for every head, in one matrix.
"""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, gated

LAYOUT = Layout(
    name="Llama",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", kept=("q_norm", "k_norm")),),
    mlps=(gated("mlp", "gate_proj", "up_proj", "down_proj"),),
    of_each_head=("q_norm", "k_norm", "rotary_emb"),
    plain_hidden=("llama", "mistral", "qwen2", "qwen3"),
)

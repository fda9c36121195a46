"""Llama's layout: seven linear layers in a block, reading four input streams.

Llama, Mistral, Qwen2 (with biases), Qwen3 (with query and key norms), SmolLM, Gemma and others.
"""

from workers.engine.architectures.architecture import Layout, Projection

LAYOUT = Layout(
    name="Llama",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    layers=(
        Projection("self_attn.q_proj", "attention_input", reads="hidden", writes="head"),
        Projection("self_attn.k_proj", "attention_input", reads="hidden", writes="head", cached=True),
        Projection("self_attn.v_proj", "attention_input", reads="hidden", writes="head", cached=True),
        Projection("self_attn.o_proj", "attention_output", reads="head", writes="hidden"),
        Projection("mlp.gate_proj", "mlp_input", reads="hidden", writes="channel"),
        Projection("mlp.up_proj", "mlp_input", reads="hidden", writes="channel"),
        Projection("mlp.down_proj", "mlp_hidden", reads="channel", writes="hidden"),
    ),
    attention="self_attn",
    mlp="mlp",
    of_each_head=("q_norm", "k_norm", "rotary_emb"),
    plain_hidden=("llama", "mistral", "qwen2", "qwen3"),
)

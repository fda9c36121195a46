"""The Llama layout: seven linear layers per decoder block, reading four input streams.

Recognised by structure (tensor names, shapes, config), so it holds for whatever shares it: Llama, Mistral, Qwen2 (with
biases), Qwen3 (with query and key norms), SmolLM and others. D = hidden size, F = MLP width.

    attention_input   -> q_proj, k_proj, v_proj
    attention_output  -> o_proj
    mlp_input         -> gate_proj, up_proj
    mlp_hidden        -> down_proj
"""

from __future__ import annotations

BLOCKS = "model.layers"
EMBEDDING = "model.embed_tokens"
FINAL_NORM = "model.norm"
HEAD = "lm_head"
"""Stored only where it is not tied to the embedding."""
STREAMS = {
    "self_attn.q_proj": "attention_input",
    "self_attn.k_proj": "attention_input",
    "self_attn.v_proj": "attention_input",
    "self_attn.o_proj": "attention_output",
    "mlp.gate_proj": "mlp_input",
    "mlp.up_proj": "mlp_input",
    "mlp.down_proj": "mlp_hidden",
}
"""Linear layer in a block -> the inputs it reads. Order of the forward pass."""
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
"""Linear layers whose outputs are added to the hidden vector; the others read it, but for what o_proj and down_proj
read."""
NATIVE_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Tried families, whose modelling code is transformers' own even where a repository also brings some."""
FLOATS = ("F32", "BF16", "F16")

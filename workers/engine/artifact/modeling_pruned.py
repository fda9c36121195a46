"""Decoder blocks of different widths: each has as many heads and MLP channels as `config.layer_shapes` says.

Needs only transformers:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

The model is the family's own in all else. `config.num_key_value_heads` and `intermediate_size` are those of the widest
block; how many query heads share a key/value head, and the size of a head, are the same in all blocks.
"""

from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM


def narrow(model):
    """Give every block's linear layers their sizes. Before weights are loaded."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shared_by = config.num_attention_heads // config.num_key_value_heads
    for block, (heads, channels) in zip(model.model.layers, config.layer_shapes, strict=True):
        attention, mlp = block.self_attn, block.mlp
        queries, keys = heads * shared_by * head_dim, heads * head_dim
        attention.q_proj = resized(attention.q_proj, outputs=queries)
        attention.k_proj = resized(attention.k_proj, outputs=keys)
        attention.v_proj = resized(attention.v_proj, outputs=keys)
        attention.o_proj = resized(attention.o_proj, inputs=queries)
        mlp.gate_proj = resized(mlp.gate_proj, outputs=channels)
        mlp.up_proj = resized(mlp.up_proj, outputs=channels)
        mlp.down_proj = resized(mlp.down_proj, inputs=channels)


def resized(linear, inputs=None, outputs=None):
    return nn.Linear(
        inputs or linear.in_features,
        outputs or linear.out_features,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )


class PrunedLlamaForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        narrow(self)


class PrunedMistralForCausalLM(MistralForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        narrow(self)


class PrunedQwen2ForCausalLM(Qwen2ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        narrow(self)


class PrunedQwen3ForCausalLM(Qwen3ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        narrow(self)

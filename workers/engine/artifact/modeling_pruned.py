"""Decoder blocks of different widths: each has as many heads and MLP channels as `config.per_layer_config` says.

Needs only transformers, 5.14 or newer, or vLLM, which builds on it:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    vllm serve folder --trust-remote-code

The model is the family's own in all else. Where the config names one number for the whole model, it is that of the
widest block; how many query heads share a key/value head, and the size of a head, are the same in all blocks.
"""

from torch import nn
from transformers import (
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
)

WIDTHS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


class OwnWidths:
    """Builds the family's model with all blocks as wide as the widest, then narrows each to its own config."""

    def __init__(self, config):
        if isinstance(config.per_layer_config, dict):
            raise ImportError("blocks of different widths need transformers 5.14 or newer: it knows per_layer_config")
        own = list(config.per_layer_config)
        config.per_layer_config = None
        super().__init__(config)
        config.per_layer_config = {
            number: {name: getattr(block, name) for name in WIDTHS} for number, block in enumerate(own)
        }
        for block, widths in zip(getattr(self, "model", self).layers, own, strict=True):
            narrow(block, widths)


def narrow(block, widths):
    """Give the linear layers of a block their sizes. Before weights are loaded."""
    attention, mlp = block.self_attn, block.mlp
    queries = widths.num_attention_heads * attention.head_dim
    keys = widths.num_key_value_heads * attention.head_dim
    attention.q_proj = resized(attention.q_proj, outputs=queries)
    attention.k_proj = resized(attention.k_proj, outputs=keys)
    attention.v_proj = resized(attention.v_proj, outputs=keys)
    attention.o_proj = resized(attention.o_proj, inputs=queries)
    mlp.gate_proj = resized(mlp.gate_proj, outputs=widths.intermediate_size)
    mlp.up_proj = resized(mlp.up_proj, outputs=widths.intermediate_size)
    mlp.down_proj = resized(mlp.down_proj, inputs=widths.intermediate_size)


def resized(linear, inputs=None, outputs=None):
    return nn.Linear(
        inputs or linear.in_features,
        outputs or linear.out_features,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )


class PrunedLlamaModel(OwnWidths, LlamaModel):
    pass


class PrunedLlamaForCausalLM(OwnWidths, LlamaForCausalLM):
    pass


class PrunedMistralModel(OwnWidths, MistralModel):
    pass


class PrunedMistralForCausalLM(OwnWidths, MistralForCausalLM):
    pass


class PrunedQwen2Model(OwnWidths, Qwen2Model):
    pass


class PrunedQwen2ForCausalLM(OwnWidths, Qwen2ForCausalLM):
    pass


class PrunedQwen3Model(OwnWidths, Qwen3Model):
    pass


class PrunedQwen3ForCausalLM(OwnWidths, Qwen3ForCausalLM):
    pass

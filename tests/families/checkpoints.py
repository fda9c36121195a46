"""Tiny random checkpoints of the families that transformers can build, each with a tokenizer of bytes.

Sizes are the same in all; `configs.json` says what a family needs besides: groups of experts, lists with an element per
block, the type of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = 256 + len(SPECIAL)
_SIZES: dict[str, tuple[str, ...]] = {
    "vocabulary": ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"),
    "blocks": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks"),
    "hidden": ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "attention_hidden_size", "lru_width"),
    "mlp": (
        "intermediate_size", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "dff", "dim_ff", "n_inner", "d_inner",
        "intermediate_size_mlp", "dense_intermediate_size",
    ),
    "expert": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "shared": (
        "shared_expert_intermediate_size", "shared_experts_intermediate_size", "moe_shared_expert_intermediate_size",
    ),
    "other_mlp": ("prefix_dense_intermediate_size", "shared_intermediate_size"),
    "heads": (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads",
        "swa_num_attention_heads", "linear_num_value_heads",
    ),
    "key_heads": (
        "num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads", "linear_num_heads",
        "index_n_heads", "indexer_n_heads",
    ),
    "head": (
        "head_dim", "swa_head_dim", "kv_channels", "dim_head", "d_head", "query_pre_attn_scalar", "qk_nope_head_dim",
        "v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "index_head_dim",
        "mamba_d_state", "ssm_state_size", "state_size", "mamba_d_head", "mamba_head_dim",
        "mamba_n_heads", "mamba_num_heads",
    ),
    "rotary": (
        "qk_rope_head_dim", "rotary_dim", "mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim",
        "short_conv_kernel_size",
    ),
    "rank": ("kv_lora_rank", "q_lora_rank"),
    "experts": ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
    "per_token": ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"),
    "one": (
        "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "n_group", "topk_group", "num_dense_layers",
        "first_k_dense_replace", "mamba_n_groups", "n_groups",
    ),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
    "window": (
        "sliding_window", "window_size", "attention_window_size", "sliding_window_size", "attention_chunk_size",
        "local_attention", "mamba_chunk_size", "chunk_size", "index_topk",
    ),
    "two": ("max_window_layers", "eos_token_id"),
    "none": ("num_kv_shared_layers", "pad_token_id"),
    "first": ("bos_token_id",),
}  # fmt: skip
"""A size -> names that configs have for it."""
_VALUES: dict[str, Any] = {
    "vocabulary": VOCABULARY, "blocks": 4, "hidden": 32, "mlp": 48, "expert": 24, "shared": 20, "other_mlp": 40,
    "heads": 4, "key_heads": 2, "head": 8, "rotary": 4, "rank": 16, "experts": 8, "per_token": 2, "one": 1,
    "context": 128, "window": 16, "two": 2, "none": 0, "first": 1,
}  # fmt: skip
ENTRIES = {name: _VALUES[size] for size, names in _SIZES.items() for name in names}
OWN: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("configs.json").read_text())
"""model_type -> entries beside those; null where the family's own default is taken instead."""
_MOST = 10_000_000


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The config of a family's tiny checkpoint, or of one that differs."""
    config_class = CONFIG_MAPPING[model_type]
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    entries = {name: size for name, size in ENTRIES.items() if name in known} | OWN.get(model_type, {}) | changes
    return config_class(**{name: entry for name, entry in entries.items() if entry is not None})


def tiny_model(config: PreTrainedConfig, build: Callable[[PreTrainedConfig], Any]) -> Any:
    """The model in evaluation, random in every tensor: gains, biases and corrections of routers too."""
    with torch.device("meta"):
        size = sum(part.numel() for part in build(config).parameters())
    if size > _MOST:
        raise ValueError(f"{size:,} parameters: the config of {config.model_type} has sizes that nobody set")
    torch.manual_seed(0)
    model = build(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_(noise / math.sqrt(tensor.shape[-1]))
            else:
                tensor.add_(0.1 * noise)
    return model.to(config.dtype or torch.float32).eval()


def save_tiny(model_type: str, folder: Path) -> None:
    """Write the tiny checkpoint of a family of decoders."""
    save(tiny_model(tiny_config(model_type), AutoModelForCausalLM.from_config), folder)


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *letters))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    pad, bos, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk)

"""Settings in which families are built: three sizes for every entry of a config, so that an axis shows which it is."""

from __future__ import annotations

import zlib
from dataclasses import MISSING, fields
from typing import Any

from transformers import PreTrainedConfig

BLOCKS = 6
SETTINGS = 3
_SIZES: dict[tuple[str, ...], tuple[Any, Any, Any]] = {
    ("vocab_size", "unpadded_vocab_size"): (101, 103, 107),
    ("vocab_size_per_layer_input",): (109, 113, 127),
    (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks",
    ): (BLOCKS,) * 3,
    ("hidden_size", "n_embd", "d_model", "embedding_dim"): (48, 96, 100),
    ("attention_hidden_size",): (112, 144, 130),
    ("lru_width",): (64, 84, 110),
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"): (8, 12, 10),
    ("decoder_attention_heads",): (8, 12, 10),
    ("num_key_value_heads", "num_kv_heads"): (4, 6, 2),
    ("swa_num_attention_heads",): (12, 8, 20),
    ("swa_num_key_value_heads",): (6, 4, 5),
    ("linear_num_heads",): (5, 7, 9),
    ("linear_num_key_heads",): (3, 5, 7),
    ("linear_num_value_heads",): (6, 15, 14),
    ("head_dim", "kv_channels", "attention_head_dim"): (10, 14, 18),
    ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"): (4, 8, 5),
    ("mamba_n_groups", "n_groups", "mamba_ngroups"): (2, 4, 5),
    ("mamba_d_ssm",): (80, 104, 110),
    ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"): (4, 6, 8),
    ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"): (3, 2, 1),
    ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "n_group", "first_k_dense_replace",
     "num_dense_layers", "decoder_sparse_step", "interleave_moe_layer_step", "max_window_layers", "eos_token_id",
     ): (2, 2, 2),
    ("topk_group", "moe_layer_start_index", "bos_token_id"): (1, 1, 1),
    ("num_kv_shared_layers", "pad_token_id", "num_mtp_layers", "num_nextn_predict_layers"): (0, 0, 0),
    (
        "conv_kernel", "mamba_d_conv", "linear_conv_kernel_dim", "short_conv_kernel_size", "conv_L_cache",
        "conv1d_width",
    ): (5, 3, 4),
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "model_max_length"): (
        64, 72, 90,
    ),
    (
        "sliding_window", "window_size", "attention_window_size", "sliding_window_size", "attention_chunk_size",
        "local_attention", "query_pre_attn_scalar",
    ): (16, 16, 16),
    ("expand", "mamba_expand"): (2, 2, 2),
    ("layer_group_size",): (3, 3, 3),
}  # fmt: skip
"""Names that configs have for a size -> its values."""
UNEQUAL: dict[str, tuple[str, tuple[int, int, int]]] = {"word_embed_proj_dim": ("hidden_size", (64, 72, 82))}
"""Entry -> the one that it equals as a rule, and values where it does not."""
_WIDTHS = (
    "intermediate_size", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "dff", "dim_ff", "n_inner", "d_inner",
    "intermediate_size_mlp", "dense_intermediate_size", "moe_intermediate_size", "expert_ffn_hidden_size",
    "shared_expert_intermediate_size", "shared_experts_intermediate_size", "moe_shared_expert_intermediate_size",
    "prefix_dense_intermediate_size", "shared_intermediate_size", "router_hidden_size",
)  # fmt: skip
_DIMENSIONS = (
    "swa_head_dim", "dim_head", "d_head", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "linear_key_head_dim",
    "linear_value_head_dim", "linear_head_dim", "index_head_dim", "mamba_d_state", "ssm_state_size", "state_size",
    "mamba_head_dim", "kv_lora_rank", "q_lora_rank", "o_lora_rank", "rotary_dim", "index_n_heads", "gated_norm_rank",
    "hidden_size_per_layer_input", "laurel_rank", "global_head_dim",
)  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"linear_head_dim": (16, 20, 24)},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere2_moe": {"first_k_dense_replace": 1},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 1]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "doge": {"num_experts": ...},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 3},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 3, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "mellum": {"mlp_layer_types": ["dense", "sparse"] * 3},
    "minimax_m3_vl_text": {"mlp_layer_types": ["dense", "sparse"] * 3},
    "mamba2": {"head_dim": (12, 16, 20)},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe", "full_attention"]},
    "recurrent_gemma": {"head_dim": ...},
    "zamba": {"layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2, "num_attention_heads": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2},
}
"""Model type -> entries beside those: kinds of blocks that its own defaults lack. `...`: left out."""


def own_fields(config_class: type[PreTrainedConfig]) -> list[Any]:
    """The fields that a family's config adds to those of all."""
    of_all = {field.name for field in fields(PreTrainedConfig)}
    return [field for field in fields(config_class) if field.name not in of_all]


def entries(config_class: type[PreTrainedConfig], setting: int) -> dict[str, Any]:
    """The config of a family in one of the settings."""
    known = {field.name for field in own_fields(config_class)} | {*config_class.attribute_map.values()}
    if not hasattr(config_class, "head_dim") and "head_dim" not in config_class.attribute_map:
        known.add("head_dim")  # blocks of some families read it, although it is no field
    found = {name: sizes[setting] for names, sizes in _SIZES.items() for name in names if name in known}
    found |= {name: _drawn(name, setting, 30, 70) for name in _WIDTHS if name in known}
    found |= {name: _drawn(name, setting, 3, 12) for name in _DIMENSIONS if name in known}
    found |= {name: found[like] for name, (like, _) in UNEQUAL.items() if name in known and like in found}
    for name, entry in _OWN.get(config_class.model_type, {}).items():
        found[name] = entry[setting] if isinstance(entry, tuple) else entry
    return {name: entry for name, entry in found.items() if entry is not ...}


def default(field: Any) -> Any:
    """Of a field of a config."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return None if value is MISSING else value


def _drawn(name: str, setting: int, least: int, spread: int) -> int:
    """An even number that follows from the entry's name and the setting."""
    return 2 * (least + zlib.crc32(f"{name} {setting}".encode()) % spread)

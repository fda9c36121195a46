"""Tiny random mixtures of experts of transformers' families."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

EXPERTS = 8
EXAMPLES = Path(__file__).parents[2] / "examples"
_SIZES: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 20,
    },
    "qwen3_moe": {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "olmoe": {"num_experts": EXPERTS, "num_experts_per_tok": 2},
    "glm4_moe": {
        "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
    "deepseek_v3": {
        "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "head_dim": 4,
        "num_key_value_heads": 4, **_LATENT,
    },
    "gpt_oss": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": 16},
    "granitemoe": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "ernie4_5_moe": {
        "moe_num_experts": EXPERTS, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1, "moe_layer_end_index": 1,
    },
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": 2},
    "minimax_m2": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "llama4_text": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "intermediate_size_mlp": 24},
    "phimoe": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
}  # fmt: skip
"""Model type -> what its config needs beside the sizes. The last block has a mixture in all of them."""


def tiny(model_type: str, **entries: Any) -> Any:
    """A random model, in eval mode, float32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **_SIZES | FAMILIES[model_type] | entries)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            if name.endswith(("gate.weight", "router.weight", "wg.weight", "router.bias")):
                tensor.normal_()  # zero from the start in some families, which sends all tokens to one expert
            elif "correction" in name:
                tensor.normal_(std=0.1)
    return model


def mixture_module(model: Any, block: int = -1) -> Any:
    """A block's mixture, the last one's if none is given."""
    layer = model.model.layers[block]
    return next(getattr(layer, name) for name in ("mlp", "block_sparse_moe", "feed_forward") if hasattr(layer, name))


def router_of(mixture: Any) -> Any:
    return getattr(mixture, "gate", None) or mixture.router


def save(model_type: str, folder: Path, **entries: Any) -> Path:
    """Save such a model with the shipped tokenizer (4096 entries)."""
    tiny(model_type, **{"vocab_size": 4096, **entries}).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLES / "models/bookworm-7m" / file, folder)
    return folder

"""Configs of the families that tests save small models of, and what a model without units must compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.helpers.small_models import SIZES
from workers.engine.architectures.architecture import Family
from workers.engine.architectures.coupled import families
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.refs import ModelRef
from workers.engine.sources.resolve import ModelSource, Sources, resolve_model

# Three key/value heads of width 8, shared by two query heads each.
WIDE = SIZES | {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48, "head_dim": 8}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**WIDE),
    "llama-tied": LlamaConfig(**WIDE, tie_word_embeddings=True),
    "llama-ungrouped": LlamaConfig(**WIDE | {"num_key_value_heads": 6}),
    "mistral": MistralConfig(**WIDE, sliding_window=16),
    "qwen2": Qwen2Config(**{key: value for key, value in WIDE.items() if key != "head_dim"}),
    "qwen2-mixed": Qwen2Config(**WIDE, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3": Qwen3Config(**WIDE | {"head_dim": 16}),
}
HEAD_DIM: dict[str, Any] = {"head_dim": 8}
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": HEAD_DIM,
    "gemma2": HEAD_DIM | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5},
    "gemma3_text": HEAD_DIM | {"query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.22, "embedding_multiplier": 12.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "olmo": {},
    "smollm3": {},
    "seed_oss": HEAD_DIM,
    "exaone4": {},
    "ernie4_5": HEAD_DIM,
    "hunyuan_v1_dense": HEAD_DIM,
}
WHOLE_BLOCKS = {"olmo2": "a norm over all heads", "stablelm": "where heads have 16 dimensions", "helium": "would build"}
"""Whose heads cannot be cut, and why."""


def described(sources: Sources) -> tuple[ModelSource, tuple[Family, ...]]:
    source = resolve_model(ModelRef(id="tiny"), sources)
    return source, families(recognise(source.config, source.stored), source.config, source.tensors)


def masked_by_hand(folder: Path, pruned: dict[str, Tensor], found: tuple[Family, ...]) -> Any:
    """The dense model with zeros where units are read that the pruned one lacks, and its readers' columns elsewhere.

    Which units those are is read off the rows of the value and the gate projection, which are cut but never changed.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    dense = model.state_dict()
    for family in found:
        name = family.reader.tensor
        writer = name.replace("o_proj", "v_proj").replace("down_proj", "gate_proj")
        rows, kept_rows = dense[writer].unflatten(0, (family.units, -1)), pruned[writer]
        width = rows.shape[1]
        kept = [u for u in range(family.units) if any(torch.equal(rows[u], part) for part in kept_rows.split(width))]
        assert len(kept) * width == len(kept_rows)
        reader = dense[name].clone().unflatten(1, (family.units, -1))
        after = pruned[name].unflatten(1, (len(kept), -1))
        reader.zero_()
        reader[:, kept] = after
        model.get_parameter(name).data = reader.flatten(1)
    return model

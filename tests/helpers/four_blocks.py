"""A Llama of four blocks that exists as shapes only, and scores of its heads and channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from workers.engine.architectures.architecture import Architecture
from workers.engine.architectures.coupled import block_families, families, hidden_families
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.facts import AllocationFacts, Units
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.laws.random_layers import seeded

BLOCKS = 4
CONFIG = {
    "model_type": "llama", "num_hidden_layers": BLOCKS, "hidden_size": 16, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 4, "max_position_embeddings": 16,
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj.weight": (24, 16), "self_attn.q_proj.bias": (24,), "self_attn.k_proj.weight": (12, 16),
    "self_attn.v_proj.weight": (12, 16), "self_attn.o_proj.weight": (16, 24), "mlp.gate_proj.weight": (20, 16),
    "mlp.up_proj.weight": (20, 16), "mlp.down_proj.weight": (16, 20), "input_layernorm.weight": (16,),
}  # fmt: skip
FACTS = {f"model.layers.{b}.{name}": TensorFacts("F32", shape) for b in range(BLOCKS) for name, shape in SHAPES.items()}
FACTS["model.embed_tokens.weight"] = TensorFacts("F32", (64, 16))
ARCHITECTURE: Architecture = recognise(CONFIG, FACTS)
FAMILIES = families(ARCHITECTURE, CONFIG, FACTS)
OF_AN_EXPERT = tuple(replace(family, kind="expert_channel") for family in FAMILIES if family.kind == "channel")
"""The channels of each MLP as if it were an expert."""
ALL_FAMILIES = (
    *FAMILIES, *OF_AN_EXPERT, *hidden_families(ARCHITECTURE, CONFIG, FACTS), *block_families(ARCHITECTURE),
)  # fmt: skip
UNITS = {"head": 3, "channel": 20, "hidden": 16, "layer": 1, "expert": 6, "expert_channel": 20}


def facts_of(seed: int = 0, kinds: Sequence[str] = ("head", "channel"), factor: float = 1.0) -> AllocationFacts:
    """Scores of kinds far apart, larger in later blocks."""
    generator = seeded(seed)
    scores = [
        {
            "head": (1000 * (1 + block) * torch.rand(3, generator=generator).double()).tolist(),
            "channel": (factor * (1 + block) * torch.rand(20, generator=generator).double()).tolist(),
        }
        for block in range(BLOCKS)
    ]
    found = [family for family in FAMILIES if family.kind in kinds]
    return AllocationFacts(ARCHITECTURE.layers, {}, units=Units(found, scores))

"""Blocks of different widths: their config entries, and the modelling file that builds them. Import-light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.engine.errors import UnsupportedModel

MODELING = "modeling_pruned.py"
"""File of the result, where its blocks differ."""
PER_LAYER = "per_layer_config"
"""Config entry of models whose blocks differ (transformers 5.14 and newer)."""
MODELLED = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Model types that `MODELING` has classes for -> prefix of the classes' names."""


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether blocks differ as an earlier pruning left them. Some families' own blocks differ too."""
    return PER_LAYER in config and config["model_type"] in MODELLED


def modeling_class(config: Mapping[str, Any]) -> str:
    """The class in `MODELING` for blocks of different widths. Raises UnsupportedModel where the family has none."""
    name = MODELLED.get(config["model_type"])
    if name is None:
        raise UnsupportedModel(
            f"{config['model_type']}: there is no modelling file for blocks of different widths in this family",
            "use a uniform allocation, without protected blocks",
            field="/allocate",
        )
    return f"Pruned{name}ForCausalLM"

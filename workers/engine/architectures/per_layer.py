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


DIFFER = ("gemma4_text", "gemma4_unified_text")
"""Model types whose own blocks differ, as the same entry says."""


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether blocks differ as an earlier pruning left them, or in a way that no family's own do."""
    if config["model_type"] not in DIFFER:
        return PER_LAYER in config
    said = config.get(PER_LAYER, {})
    return not isinstance(said, dict) or not all(
        block.isascii()
        and block.isdigit()
        and isinstance(entries, dict)
        and all(type(entry) is int and entry > 0 for entry in entries.values())
        for block, entries in said.items()
    )


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

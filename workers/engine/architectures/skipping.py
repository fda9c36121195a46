"""Dynamic skipping of experts: the config entry that says when, and the modelling file that does it. Import-light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.engine.errors import UnsupportedModel

SKIPPING = "modeling_skipping.py"
"""File of the result that skips."""
BETAS = "betas"
"""Config entry: block, as text -> the smallest weight of an expert, as a share of the largest, at which it runs."""
SKIPS = {"mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe", "olmoe": "Olmoe"}
"""Model types that `SKIPPING` has classes for -> prefix of the classes' names."""


def skipping_class(model_type: str) -> str:
    """The class in `SKIPPING`. Raises UnsupportedModel where the family has none."""
    name = SKIPS.get(model_type)
    if name is None:
        raise UnsupportedModel(
            f"{model_type}: there is no modelling file that skips experts in this family, only for {', '.join(SKIPS)}",
            "leave `skip` out",
            field="/prune/skip",
        )
    return f"Skipping{name}ForCausalLM"


def skipping_entries(model_type: str, betas: Mapping[int, float]) -> dict[str, Any]:
    """Config entries of a model that skips. `betas`: block -> beta."""
    architecture, module = skipping_class(model_type), SKIPPING.removesuffix(".py")
    return {
        BETAS: {str(block): beta for block, beta in betas.items()},
        "architectures": [architecture],
        "auto_map": {"AutoModelForCausalLM": f"{module}.{architecture}"},
    }

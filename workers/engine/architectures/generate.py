"""Writes `families.json`: the tensors that transformers builds for a config, for dry runs without transformers.

python -m workers.engine.architectures.generate

Every decoder that transformers has is built on the meta device in sizes that tell its axes apart, once for every switch
of its config that changes which tensors there are. A test generates the file again and compares.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto import modeling_auto as auto

from workers.engine.architectures.generation.row import family_row
from workers.engine.architectures.wrappers import WRAPPERS

FILE = Path(__file__).with_name("families.json")
_KINDS = (
    ("multimodal", ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "VISION_2_SEQ")),
    ("encoder-decoder", ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")),
    ("encoder", ("MASKED_LM",)),
    ("decoder", ("CAUSAL_LM",)),
)
"""Kinds of model, by transformers' lists of model types; the first list that has a type counts."""


def generate() -> dict[str, Any]:
    """The content of the file."""
    lists = {kind: {t for name in names for t in _auto(name)} for kind, names in _KINDS}
    kinds: dict[str, list[str]] = {kind: [] for kind in (*lists, "other")}
    for model_type in sorted(CONFIG_MAPPING):
        kinds[next((kind for kind, _ in _KINDS if model_type in lists[kind]), "other")].append(model_type)
    towers = sorted({wrapper.text for wrapper in WRAPPERS.values()} - {*kinds["decoder"]})
    found = {name: family_row(name) for name in (*kinds["decoder"], *towers)}
    declared = {field.name for field in fields(PreTrainedConfig)}
    return {
        "transformers": transformers.__version__,
        "activations": sorted(name for name in ACT2FN if not ACT2FN[name].state_dict()),
        "generation": sorted(
            name
            for name in vars(GenerationConfig())
            if name not in ("use_cache", "transformers_version")
            and not name.startswith("_")
            and not name.endswith("_token_id")
        ),
        "rope_types": sorted({*ROPE_INIT_FUNCTIONS, "default"}),
        "attributes": sorted(
            name for name in dir(PreTrainedConfig) if not name.startswith("_") and name not in declared
        ),
        "kinds": kinds,
        "families": {name: family for name, family in found.items() if family is not None},
    }


def written(content: dict[str, Any]) -> str:
    """The content as text: one line a family."""
    parts = {name: value for name, value in content.items() if name != "families"}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in parts.items()]
    rows = [f"  {json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in content["families"].items()]
    return "\n".join(["{", *lines, ' "families": {', ",\n".join(rows), " }", "}"]) + "\n"


def _auto(name: str) -> dict[str, Any]:
    return getattr(auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {})


if __name__ == "__main__":
    FILE.write_text(written(generate()), encoding="utf-8")
    sys.exit(0)

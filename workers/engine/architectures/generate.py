"""Writes `families.json`: the tensors that transformers builds for a config, for dry runs without transformers.

python -m workers.engine.architectures.generate

Every family with the blocks of a layout is built on the meta device in sizes that tell its axes apart, once for every
switch of its config that changes which tensors there are. A test generates the file again and compares.
"""

from __future__ import annotations

import json
import sys
import types
import typing
import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto import modeling_auto as auto

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.built import PER_LAYER_LISTS
from workers.engine.architectures.layouts import layouts

FILE = Path(__file__).with_name("families.json")
_SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 70, "vocab_size": 101, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 10, "num_hidden_layers": 6, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_AXES = {48: "hidden", 70: "mlp", 101: "vocabulary", 8: "heads", 4: "key_heads", 80: "query", 40: "key", 10: "head"}
_AXES_DERIVED = {48: "hidden", 70: "mlp", 101: "vocabulary", 8: "heads", 4: "key_heads", 24: "key", 6: "head"}
"""Where a head's width is the hidden size over the number of heads whatever `head_dim` says."""
_KINDS = (
    ("multimodal", ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "VISION_2_SEQ")),
    ("encoder-decoder", ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")),
    ("encoder", ("MASKED_LM",)),
    ("decoder", ("CAUSAL_LM",)),
)
"""Kinds of model, by transformers' lists of model types; the first list that has a type counts."""

Shapes = dict[str, tuple[int, ...]]


def generate() -> dict[str, Any]:
    """The content of the file."""
    lists = {kind: {t for name in names for t in _auto(name)} for kind, names in _KINDS}
    kinds: dict[str, list[str]] = {kind: [] for kind in (*lists, "other")}
    for model_type in sorted(CONFIG_MAPPING):
        kinds[next((kind for kind, _ in _KINDS if model_type in lists[kind]), "other")].append(model_type)
    found = {name: family_row(name) for name in kinds["decoder"]}
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


def family_row(model_type: str) -> dict[str, Any] | None:
    """One row, or None for a family whose blocks are of no layout, or not all alike."""
    with warnings.catch_warnings():  # of sizes too small for use
        warnings.simplefilter("ignore")
        return _row(model_type)


def _row(model_type: str) -> dict[str, Any] | None:
    config_class = CONFIG_MAPPING[model_type]
    plain = _shapes(config_class)
    layout = next((layout for layout in layouts() if plain is not None and _is_of(layout, plain)), None)
    if plain is None or layout is None:
        return None
    queries = next(layer for layer in layout.layers if layer.writes == "head")
    derived = plain[f"{layout.block(0)}.{queries.name}.weight"][0] == _SIZES["hidden_size"]
    axes = _AXES_DERIVED if derived else _AXES
    own = [field for field in fields(config_class) if field.name not in {f.name for f in fields(PreTrainedConfig)}]
    tensors = _named(layout, plain, axes)
    switches: dict[str, Any] = {}
    for field in own:
        if not isinstance(field.default, bool):
            continue
        change = {field.name: not field.default}
        other, larger = _shapes(config_class, **change), _shapes(config_class, **change, num_attention_heads=16)
        if other is None or larger is None or {*other} != {*larger}:
            switches[field.name] = None
        elif (named := _named(layout, other, axes)) != tensors:
            switches[field.name] = _difference(tensors, named)
    refused = {
        "heads_divide_hidden": {"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 44},
        "key_heads_even": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36},
    }
    return {
        "class": type(_build(config_class)).__name__,
        "fields": {field.name: [_kinds_of(field.type), _default(field)] for field in own},
        "aliases": dict(config_class.attribute_map),
        "tensors": tensors,
        "switches": switches,
        "head_from_hidden": derived,
        "needs": ["head_dim"] if _shapes(config_class, head_dim=...) is None else [],
        **{rule: _shapes(config_class, **changes) is None for rule, changes in refused.items()},
        "counts_blocks": _counts_blocks(layout, config_class),
        "ignored": _ignored(config_class),
    }


def _build(config_class: type[PreTrainedConfig], **changes: Any) -> Any:
    entries = {name: entry for name, entry in (_SIZES | changes).items() if entry is not ...}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_class(**entries))


def _shapes(config_class: type[PreTrainedConfig], **changes: Any) -> Shapes | None:
    """Tensor name -> shape of the model in our sizes, `...` being left out; None where transformers refuses them."""
    try:
        return {name: tuple(tensor.shape) for name, tensor in _build(config_class, **changes).state_dict().items()}
    except Exception:  # whatever it is: then it is not one of ours
        return None


def _is_of(layout: Layout, shapes: Shapes) -> bool:
    blocks: list[Shapes] = [{} for _ in range(_SIZES["num_hidden_layers"])]
    for name, shape in shapes.items():
        if (found := layout.split(name)) and found[0] < len(blocks):
            blocks[found[0]][found[1]] = shape
    matrices = {name.removesuffix(".weight") for name, shape in blocks[0].items() if len(shape) > 1}
    return matrices == {layer.name for layer in layout.layers} and all(block == blocks[0] for block in blocks)


def _named(layout: Layout, shapes: Shapes, axes: dict[int, str]) -> dict[str, list[str | int]]:
    """Tensor name (block 0's for all) -> its axes by name, or as numbers where no size of the config is theirs."""
    first = {name: shape for name, shape in shapes.items() if layout.in_block(name, 0) == name}
    return {name: [axes.get(size, size) for size in shape] for name, shape in sorted(first.items())}


def _difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Entries of `other` that differ from `one`; None for entries that it lacks."""
    return {name: other.get(name) for name in sorted({*one, *other}) if one.get(name) != other.get(name)}


def _counts_blocks(layout: Layout, config_class: type[PreTrainedConfig]) -> bool:
    """Whether a block computes with its number, other than through lists in the config."""
    lists: dict[str, Any] = {}
    config = config_class(**_SIZES)
    for name in PER_LAYER_LISTS:
        if isinstance(getattr(config, name, None), list):
            lists[name] = getattr(config, name)[:1] * _SIZES["num_hidden_layers"]
    model = _build(config_class, **lists)

    def constants(block: int) -> dict[str, Any]:
        return {
            f"{name}.{key}": value
            for name, module in model.get_submodule(layout.block(block)).named_modules()
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | None) and key not in ("layer_idx", "layer_id", "layer_index")
        }

    return any(constants(block) != constants(0) for block in range(1, _SIZES["num_hidden_layers"]))


def _ignored(config_class: type[PreTrainedConfig]) -> list[str]:
    """Patterns of tensor names that transformers ignores without a warning."""
    model = _build(config_class)
    return sorted(str(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())


def _kinds_of(annotation: Any) -> list[str]:
    """JSON types that a field of a config takes, as transformers checks them; empty for any."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        parts = [_kinds_of(part) for part in typing.get_args(annotation)]
        return sorted({kind for part in parts for kind in part}) if all(parts) else []
    plain = {int: "int", float: "float", bool: "bool", str: "str", types.NoneType: "null", list: "list", dict: "dict"}
    base = typing.get_origin(annotation) or annotation
    if isinstance(base, type) and issubclass(base, dict | list):  # a TypedDict is a dict
        base = dict if issubclass(base, dict) else list
    return [plain[base]] if base in plain else []


def _default(field: Any) -> Any:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return None if value is MISSING else value


if __name__ == "__main__":
    FILE.write_text(written(generate()), encoding="utf-8")
    sys.exit(0)

"""Tensors and shapes that transformers builds from a config, and the configs that it refuses. Import-light.

They are read from `families.json`, which `generate.py` makes with transformers, so that a dry run refuses the same as a
worker: weights that do not fit their config, and results that no config of the family can describe.
D = hidden size, H = query heads, K = key/value heads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from workers.engine.architectures.architecture import Layout
from workers.engine.errors import UnsupportedModel
from workers.engine.files.model_files import shown
from workers.engine.files.safetensors_bytes import TensorFacts

Tensors = dict[str, tuple[int, ...]]
FLOATS = ("F32", "BF16", "F16")
"""Types that weights may be stored in."""

PER_LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types", "layer_rope_theta")
"""Config entries with one element per block."""
_OBEYED_BY_NOBODY = (
    "attn_implementation", "experts_implementation", "use_kernels", "kernel_config", "return_dict", "torchscript",
    "output_hidden_states", "chunk_size_feed_forward", "gradient_checkpointing", "tie_last_hidden_states",
    "trust_remote_code", "auto_map", "custom_generate", "id2label", "label2id", "problem_type", "is_encoder_decoder",
    "is_decoder", "add_cross_attention", "pruned_heads",
)  # fmt: skip
"""Config entries that choose how a model is run, or by which code; so do those that begin with `_`."""
_OF_OTHER_FAMILIES = (
    "sliding_window", "layer_types", "attention_chunk_size", "is_causal", "qk_head_dim", "kv_sharing_modes",
    "number_of_conv_states", "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types", "mtp_per_layer_config",
    "fusion_config", "distributed_config", "transformers_weights",
)  # fmt: skip
"""Config entries that transformers' caches and masks read for any model, but only some families' blocks do: the cache
of a Llama with a `sliding_window` would drop keys that its blocks attend to."""
_OBEYED = {"model_type", "rope_scaling", "torch_dtype", "per_layer_config", "allow_global_per_layer_attribute_access"}
"""Attributes of transformers' configs that entries of `config.json` may set."""
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$",)
"""Tensors of old checkpoints that follow from the config."""
_HINT = "check that config.json belongs to the weights, and that the copy or download is complete"


@cache
def table() -> Mapping[str, Any]:
    """The content of `families.json`."""
    found: Mapping[str, Any] = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
    return found


def family(model_type: str) -> Mapping[str, Any] | None:
    """The row of a family with the blocks of a layout; None for any other model type."""
    found: Mapping[str, Any] | None = table()["families"].get(model_type)
    return found


def known_family(model_type: str) -> Mapping[str, Any]:
    """The row of a family that `check_config` has passed. Raises KeyError for others."""
    if (row := family(model_type)) is None:
        raise KeyError(model_type)
    return row


def value(config: Mapping[str, Any], name: str) -> Any:
    """An entry of a config, or its family's default."""
    row = family(config["model_type"])
    if row is not None:
        name = row["aliases"].get(name, name)
        for alias, real in row["aliases"].items():
            if real == name and alias in config:
                return config[alias]
        if name not in config and name in row["fields"]:
            return row["fields"][name][1]
    return config.get(name)


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether the config ties the output head to the embedding, unless a head is stored."""
    return bool(value(config, "tie_word_embeddings"))


def key_heads(config: Mapping[str, Any]) -> int:
    found = value(config, "num_key_value_heads")
    return config["num_attention_heads"] if found is None else int(found)


def head_dim(config: Mapping[str, Any]) -> int:
    """Width of a head."""
    row = family(config["model_type"])
    found = None if row is not None and row["head_from_hidden"] else value(config, "head_dim")
    return int(found or config["hidden_size"] // config["num_attention_heads"])


def sizes_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of outputs by which parts of one tensor are told apart: of all query heads and of all key heads, of one
    head, and of the query heads that share a key head. Empty where the config does not say them."""
    heads, hidden = value(config, "num_attention_heads"), value(config, "hidden_size")
    keys = value(config, "num_key_value_heads") or heads
    if not all(type(size) is int and size > 0 for size in (heads, hidden, keys)):
        return {}
    width = value(config, "head_dim")
    width = width if type(width) is int and width > 0 else hidden // heads
    return {"query": heads * width, "key": keys * width, "head": width, "group": heads // keys * width}


def obeyed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without entries that choose code or kernels, shadow a method, or that its family does not read."""
    row = family(config["model_type"])
    known = () if row is None else row["fields"]
    of_others = {name for name in (*_OF_OTHER_FAMILIES, *table()["generation"]) if name not in known}
    strange = {name for name in of_others if config.get(name) is not None}
    if "head_dim" not in known and config.get("head_dim", 0) is None:  # blocks take null for a number
        strange.add("head_dim")
    refused = {*_OBEYED_BY_NOBODY, *table()["attributes"]} - _OBEYED
    empty = {name for name in ("quantization_config", "compression_config") if not config.get(name)}
    return {
        name: entry
        for name, entry in config.items()
        if not name.startswith("_") and name not in refused and name not in empty and name not in strange
    }


def expected(layout: Layout, config: Mapping[str, Any]) -> Tensors:
    """Tensor name -> shape, of all tensors that transformers builds from a config that `check_config` has passed."""
    row = known_family(config["model_type"])
    tensors = dict(row["tensors"])
    for switch, changes in row["switches"].items():
        if bool(value(config, switch)) != bool(row["fields"][switch][1]):  # null is false
            tensors |= changes
    heads, keys, width = config["num_attention_heads"], key_heads(config), head_dim(config)
    sizes = {
        "hidden": config["hidden_size"],
        "mlp": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
        "heads": heads,
        "key_heads": keys,
        "query": heads * width,
        "key": keys * width,
        "head": width,
    }
    found: Tensors = {}
    for name, axes in tensors.items():
        if axes is None:
            continue
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)
        if layout.split(name) is not None:  # block 0's, which stands for all
            found |= {layout.in_block(name, block): shape for block in range(config["num_hidden_layers"])}
        else:
            found[name] = shape
    return found


def check_tensors(layout: Layout, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]) -> None:
    """Refuse weights that do not fit their config: missing, of other shapes, surplus, not floats. UnsupportedModel."""
    model_type, wanted = config["model_type"], expected(layout, config)
    row = known_family(model_type)
    for name, shape in wanted.items():
        facts = tensors.get(name)
        if facts is None and name == layout.head_weight:
            if ties_head(config):
                continue
            raise _misfit(
                model_type,
                f"the weights hold no `{name}`, and config.json does not tie the head to the embedding: a base model "
                "without its language-modelling head, or a config of another model",
            )
        if facts is None:
            raise _misfit(model_type, f"the weights lack `{name}`, {list(shape)} by config.json")
        if facts.shape != shape:
            raise _misfit(
                model_type, f"`{name}` should be {list(shape)} by config.json, and is {shown(list(facts.shape))}"
            )
        if facts.dtype not in FLOATS:
            raise _misfit(model_type, f"`{name}` is stored as {facts.dtype}, not as {', '.join(FLOATS)}")
    idle = re.compile("|".join([*_OLD_BUFFERS, *row["ignored"]]))
    for name in tensors:
        if name not in wanted and not idle.search(name):
            raise _surplus(model_type, name)


def _surplus(model_type: str, name: str) -> UnsupportedModel:
    if name.partition(".")[0] in ("score", "classifier", "qa_outputs", "v_head", "value_head"):
        return _misfit(
            model_type,
            f"it is a classifier or reward model: `{shown(name)}` stands where a language model has its head",
            "use the language model that it was made of",
        )
    return _misfit(
        model_type,
        f"the weights hold `{shown(name)}`, for which transformers has no place in a model of this config",
        "use weights of a plain model of the family: what is not known to be carried along is not pruned around",
    )


def _misfit(model_type: str, why: str, hint: str = _HINT) -> UnsupportedModel:
    return UnsupportedModel(f"{model_type}: {why}", hint, field="/model/id")

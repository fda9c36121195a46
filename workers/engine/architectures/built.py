"""Configs as transformers reads them: defaults, names of entries, sizes that follow from others. Import-light.

It is read from `families.json`, which `generate.py` makes with transformers, so that a dry run refuses the same as a
worker. A family names entries as it likes (`n_embd`); here they have one name each (`hidden_size`), which `value` reads
and `spelled` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FLOATS = ("F32", "BF16", "F16")
"""Types that weights may be stored in."""

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

_OF_LLAMA = [
    *(f"mlp.{name}_proj.weight" for name in ("down", "gate", "up")),
    *(f"self_attn.{name}_proj.weight" for name in "koqv"),
]
"""Names of the matrices of a block of Llama."""
_UNSAID_CONTEXT = 2048
PER_LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types", "layer_rope_theta", "attention_layers")
"""Config entries of many families with one element per block."""


@cache
def table() -> Mapping[str, Any]:
    """The content of `families.json`."""
    found: Mapping[str, Any] = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
    return found


def family(model_type: str) -> Mapping[str, Any] | None:
    """The row of a decoder that transformers builds; None for any other model type."""
    found: Mapping[str, Any] | None = table()["families"].get(model_type)
    return found


def known_family(model_type: str) -> Mapping[str, Any]:
    """The row of a family that `check_config` has passed. Raises KeyError for others."""
    if (row := family(model_type)) is None:
        raise KeyError(model_type)
    return row


def like_llama(row: Mapping[str, Any]) -> bool:
    """Whether a family has the seven matrices of Llama in all blocks: what its config may say is known in detail."""
    variants = [variant for part in row["parts"].values() for variant in part]
    return sorted(name for variant in variants for name, axes in variant.items() if axes[1:]) == _OF_LLAMA


def own_name(config: Mapping[str, Any], name: str) -> str:
    """The family's own name of an entry."""
    row = family(config["model_type"])
    found: str = name if row is None else row["names"].get(name) or row["aliases"].get(name, name)
    return found


def spellings(config: Mapping[str, Any], name: str) -> list[str]:
    """The names by which a config has an entry: as a rule one, none where it leaves it out."""
    own, row = own_name(config, name), family(config["model_type"])
    aliases = [] if row is None else [alias for alias, real in row["aliases"].items() if real == own]
    return [spelling for spelling in (*aliases, own) if spelling in config]


def spelled(config: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries under the names that the config has for them."""
    return {
        spelling: entry
        for name, entry in entries.items()
        for spelling in spellings(config, name) or [own_name(config, name)]
    }


def value(config: Mapping[str, Any], name: str) -> Any:
    """An entry of a config, or its family's default, or what its blocks take where that is null."""
    row = family(config["model_type"])
    if row is None:
        return config.get(name)
    own, found = own_name(config, name), next(iter(spellings(config, name)), None)
    entry = config[found] if found is not None else _default(row, own)
    return evaluate(row["nulls"][own], config) if entry is None and own in row["nulls"] else entry


def _default(row: Mapping[str, Any], own: str) -> Any:
    """A family's default of an entry; the field may bear an alias of its name."""
    names = [own, *(alias for alias, real in row["aliases"].items() if real == own)]
    return next((row["fields"][name][1] for name in names if name in row["fields"]), None)


def is_set(config: Mapping[str, Any], switch: str) -> bool:
    """The state of a switch of `families.json`: whether an entry is true, or not 0, or two (`one!=other`) differ."""
    one, unequal, other = switch.partition("!=")
    said = value(config, one)
    return said is not None and said != value(config, other) if unequal else bool(said)


def evaluate(expression: str | int | None, config: Mapping[str, Any]) -> int | None:
    """The size of an axis, of an expression as `generation/axes.py` makes them. None where it is not known."""
    if expression is None or isinstance(expression, int):
        return expression
    terms = []
    for term in expression.split("+"):
        factors = [_factor(factor, config) for factor in term.split("*")]
        known = [factor for factor in factors if factor is not None]
        if len(known) < len(factors):
            return None
        terms.append(math.prod(known))
    return sum(terms)


def _factor(factor: str, config: Mapping[str, Any]) -> int | None:
    over, _, below = factor.partition("/")
    if below:
        whole, parts = _factor(over, config), _factor(below, config)
        return None if whole is None or not parts else whole // parts
    found = int(factor) if factor.isdecimal() else value(config, factor)
    return found if type(found) is int else None


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether the config ties the output head to the embedding, unless a head is stored."""
    return bool(value(config, "tie_word_embeddings"))


def block_count(config: Mapping[str, Any]) -> int | None:
    """Number of blocks; None where the config does not say it."""
    said = value(config, "num_hidden_layers") if spellings(config, "num_hidden_layers") else None
    if said is None and isinstance(listed := config.get("layers_block_type"), list):  # Nemotron-H says what each is
        return len(listed)
    return said if type(said) is int else None


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest text that a model reads. Where a family's config has no entry for it (ALiBi), that it was trained on,
    or the shortest usual one. None where the entry is missing or no number."""
    row, said = family(config["model_type"]), value(config, "max_position_embeddings")
    if said is None and row is not None and own_name(config, "max_position_embeddings") not in row["fields"]:
        said = config.get("seq_length", _UNSAID_CONTEXT)
    return said if type(said) is int else None


def per_block(config: Mapping[str, Any]) -> list[str]:
    """Entries that have one element per block."""
    row = family(config["model_type"])
    return list(dict.fromkeys((*PER_LAYER_LISTS, *(() if row is None else row["per_block"]))))


def key_heads(config: Mapping[str, Any]) -> int:
    """Number of key/value heads."""
    heads = int(value(config, "num_attention_heads"))
    if not value(config, "new_decoder_architecture") and (shared := value(config, "multi_query")) is not None:
        return 1 if shared else heads  # Falcon, StarCoder
    return int(value(config, "num_key_value_heads") or heads)


def head_dim(config: Mapping[str, Any]) -> int:
    """Width of a head."""
    row = family(config["model_type"])
    found = None if row is not None and row["head_from_hidden"] else value(config, "head_dim")
    return int(found or value(config, "hidden_size") // value(config, "num_attention_heads"))


def sizes_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of outputs by which parts of one tensor are told apart: of all query heads and of all key heads, of one
    head, of the query heads that share a key head, and of a quarter of all. Empty where the config does not say them.
    """
    said = [value(config, name) for name in ("num_attention_heads", "hidden_size", "num_key_value_heads", "head_dim")]
    if not all(size is None or (type(size) is int and size > 0) for size in said) or None in said[:2]:
        return {}
    heads, keys, width = said[0], key_heads(config), head_dim(config)
    return {
        "query": heads * width,
        "key": keys * width,
        "head": width,
        "group": heads // keys * width,
        "quarter": heads * width // 4,
    }


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

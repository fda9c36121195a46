"""Checks of a config: entries that transformers refuses or cannot compute with. Import-light."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workers.engine.architectures.built import (
    block_count,
    family,
    head_dim,
    is_set,
    known_family,
    like_llama,
    own_name,
    per_block,
    sizes_of,
    spellings,
    table,
    value,
)
from workers.engine.architectures.canonical import canonical_facts
from workers.engine.architectures.expected import expected
from workers.engine.errors import UnsupportedModel
from workers.engine.files.model_files import are_token_ids, infinite, shown
from workers.engine.files.safetensors_bytes import TensorFacts

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Layout

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Entries that every config of a family like Llama must have."""
LAYER_TYPES = ("full_attention", "sliding_attention")
DTYPES = ("float32", "bfloat16", "float16", "float64")
_ROPE = {
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor"},
    "longrope": {"short_factor", "long_factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
}
"""Kind of rotary embedding -> entries that it requires."""
_ABOVE_0 = (
    "factor", "rope_theta", "partial_rotary_factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings",
)  # fmt: skip
_OF_PARTS = ("default", "proportional")
"""Kinds that keep the width of heads, whatever part of them is rotated."""
_NEEDED_BY_MINISTRAL3 = ("llama_4_scaling_beta", "original_max_position_embeddings")
_LISTS = ("short_factor", "long_factor")
_SECTION = "mrope_section"
"""Entry for how many pairs of dimensions each axis of a position has, of time and of pictures."""
_NAMED_MROPE = ("qwen2_vl_text", "qwen2_5_vl_text")
"""Families whose files call the default kind `mrope`."""
_MAY_BE_NULL = {"default": {*_ABOVE_0, *_LISTS} - {"rope_theta"}, "yarn": {"factor"}, "longrope": {"factor"}}
"""Kind of rotary embedding -> entries that may be null."""
_PARTIAL = {"stablelm": 0.25}
"""Families that rotate a part of each head -> that part, by default."""
_NUMBERS = ("layer_norm_eps", "logit_scale")
"""Entries that transformers accepts as null but cannot compute with."""
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation", "mlp_hidden_act", "afn")
_ROPE_BY_TYPE = ("cohere_compass_text", "gemma3_text", "olmo3")
_ROPE_BY_TYPE_ALONE = "cohere_compass_text"
"""The family that has no default of it."""
"""Families with a rotary embedding for each kind of attention."""
_LARGEST = 2**31
_REMEDY = 'remove channels only (`"units": ["channel"]`), or whole blocks with `depth`'
_REMEDY_OF_FIXED = (
    "remove weights, or whole blocks with `depth`: the config of this family does not say how wide its MLP is"
)


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config that transformers would: UnsupportedModel names the entry."""
    model_type = config["model_type"]
    row = family(model_type)
    if row is None:
        raise UnsupportedModel(
            f"{shown(model_type)}: transformers {table()['transformers']} has it made of other blocks than those known",
            "use a model of a family that is listed as supported",
            field="/model/id",
        )
    if (wrong := next(_wrong(config, row), None)) is not None:
        raise UnsupportedModel(
            f"{model_type}: config.json: {wrong}",
            "correct config.json, or use a model as its authors saved it",
            field="/model/id",
        )


def check_result(
    layout: Layout,
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    stored: Collection[str],
    field: str,
) -> None:
    """Refuse a result whose shapes its config cannot describe. UnsupportedModel.

    `shapes`: canonical tensor -> shape. `stored`: the names of the dense model's tensors in its files.
    """
    row = known_family(config["model_type"])
    why = next((f"the result's config would be refused: {wrong}" for wrong in _wrong(config, row)), None)
    for name, sizes in expected(config, stored, layout.turned).items() if why is None and layout.turned else ():
        if layout.below(name) in layout.turned and sizes[-2] == sizes[-1]:
            why = f"transformers would not turn {name} of {list(sizes)}, as it does with the model's own"
            break
    for name, wanted in _canonical(layout, config, stored).items() if why is None else ():
        if name in shapes and tuple(shapes[name]) != wanted:
            why = (
                f"transformers would build {name} as {list(wanted)} by the config of the result, which holds "
                f"{list(shapes[name])}"
            )
            break
    if why is not None:
        raise UnsupportedModel(
            f"{config['model_type']}: {why}",
            _REMEDY if own_name(config, "intermediate_size") in row["fields"] else _REMEDY_OF_FIXED,
            field=field,
        )


def _canonical(layout: Layout, config: Mapping[str, Any], stored: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Canonical tensor -> shape by the config, of those whose shape is known."""
    whole = {
        name: TensorFacts("F32", tuple(size for size in sizes if size is not None))
        for name, sizes in expected(config, stored, layout.turned).items()
        if None not in sizes
    }
    return {name: facts.shape for name, facts in canonical_facts(layout, sizes_of(config), whole, strict=False).items()}


def _wrong(config: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    """Errors of a config, one line each. Later checks rely on the earlier ones."""
    detailed = like_llama(row)
    for name in SIZES if detailed else ():
        if config.get(name) is None:
            yield f"there is no `{name}`"
    for name in row["needs"]:
        if value(config, name) is None:
            yield f"there is no `{name}`"
    kinds_of = {name: row["fields"].get(real, [()])[0] for name, real in row["aliases"].items()}
    kinds_of |= {name: kinds for name, (kinds, _) in row["fields"].items()}
    for name, kinds in kinds_of.items():
        if name in config and kinds and _kind(config[name]) not in kinds:
            yield f"`{name}` is {shown(json.dumps(config[name]))}, not of type {' or '.join(kinds)}"
        if name in config and name.endswith("_token_id") and not are_token_ids(config[name]):
            yield f"`{name}` is {shown(json.dumps(config[name]))}, no token ids"
    if infinite(dict(config)):
        yield "it holds a number that is not finite"
    if not isinstance(config.get("architectures", []), list | None):
        yield "`architectures` is not a list"
    yield from _wrong_sizes(config, row)
    yield from _wrong_lists(config, row)
    yield from _wrong_routing(config, row)
    if detailed:
        yield from _wrong_lists_of_llama(config, row)
    if "rope_parameters" in row["fields"]:
        yield from _wrong_rope(config, detailed)
    for name in _ACTIVATIONS:
        known = () if name not in row["fields"] else (*table()["activations"], row["fields"][name][1])
        if known and name in config and config[name] not in known:
            yield f"`{name}` is {shown(json.dumps(config[name]))}, which transformers does not know or gives weights"
    for name in ("dtype", "torch_dtype"):
        if config.get(name) is not None and config[name] not in DTYPES:
            yield f"`{name}` is {shown(json.dumps(config[name]))}, not one of {', '.join(DTYPES)}"
    for name, entry in config.items():
        if detailed and name in _NUMBERS and entry is None and row["fields"].get(name, [(), 0])[1] is not None:
            yield f"`{name}` is null"
        if name == "lambda_std_dev" and not _number(entry, lambda x: x >= 0):
            yield f"`{name}` is {shown(json.dumps(entry))}, not a number from 0"
        if name == "attention_dropout" and config["model_type"] == "diffllama" and entry != 0:
            yield "`attention_dropout` is not 0, which this family cannot do"
        of_unit = name.endswith(("dropout", "pdrop", "dropout_prob")) or name == "initializer_range"
        if of_unit and entry is not None and not _number(entry, lambda x: 0 <= x <= 1):
            yield f"`{shown(name)}` is {shown(json.dumps(entry))}, not between 0 and 1"
    for switch, (usual, changes) in row["switches"].items():
        if changes is None and is_set(config, switch) != usual:
            yield f"`{switch}` is {json.dumps(value(config, switch))}, a variant that is not supported"


def _wrong_sizes(config: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    fields, keyed = row["fields"], own_name(config, "num_key_value_heads") in row["fields"]
    known = [name for name in SIZES if own_name(config, name) in fields and name != "num_hidden_layers"]
    sizes = {name: value(config, name) for name in known} | {"num_hidden_layers": block_count(config)}
    heads = sizes.get("num_attention_heads")
    if keyed and heads is not None:
        keys = value(config, "num_key_value_heads")
        sizes["num_key_value_heads"] = heads if keys is None else keys
    if own_name(config, "max_position_embeddings") in fields:
        sizes["max_position_embeddings"] = value(config, "max_position_embeddings")
    slides = "use_sliding_window" not in fields or value(config, "use_sliding_window")  # else it is 0 in some families
    optional = ["query_pre_attn_scalar", "no_rope_layer_interval"] if like_llama(row) else []
    optional += ["sliding_window"] if like_llama(row) or slides else []
    optional += ["head_dim"] if like_llama(row) or not row["head_from_hidden"] else []
    for name in optional:
        if value(config, name) is not None:
            sizes[name] = value(config, name)
    for name, size in sizes.items():
        said = next(iter(spellings(config, name)), name)
        if type(size) is not int or not 1 <= size < _LARGEST:
            yield f"`{said}` is {shown(json.dumps(size))}, not a number from 1 to {_LARGEST - 1}"
    if heads is None:
        return
    if keyed and heads % sizes["num_key_value_heads"]:
        yield f"{heads} query heads cannot share {sizes['num_key_value_heads']} key/value heads evenly"
    if row["heads_divide_hidden"] and sizes["hidden_size"] % heads:
        yield f"{heads} query heads do not divide the hidden size of {sizes['hidden_size']}, as they must"
    if row["key_heads_even"] and keyed and sizes["num_key_value_heads"] % 2:
        yield f"{sizes['num_key_value_heads']} key/value heads are an odd number, where they are split in two"
    pad, vocabulary = value(config, "pad_token_id"), sizes["vocab_size"]
    if pad is not None and not -vocabulary <= pad < vocabulary:
        yield f"`pad_token_id` is {pad}, beyond the vocabulary of {vocabulary}"
    if not like_llama(row):
        return
    if head_dim(config) < 2 or head_dim(config) % 2:
        yield f"heads of {head_dim(config)} dimensions: rotary embeddings take them in pairs"
    if config["model_type"] in _PARTIAL and config.get("head_dim") not in (None, head_dim(config)):
        yield f"`head_dim` is {config['head_dim']}, where heads have {head_dim(config)} dimensions"
    normed = any(name.endswith("attn_sub_norm.weight") for part in row["parts"].values() for name in part[0])
    if normed and heads * head_dim(config) != config["hidden_size"]:
        yield f"{heads} heads of {head_dim(config)} do not make up the hidden size of {config['hidden_size']}"


def _wrong_lists(config: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    blocks, numbers = block_count(config), ("no_rope_layers", "layer_rope_theta")
    for name in per_block(config):
        entry = config.get(name)
        if entry is None:
            continue
        if not isinstance(entry, list) or len(entry) != blocks:
            yield f"`{name}` is not a list of {blocks} elements, one for each block"
        elif name in numbers and not all(_number(x, lambda x: x >= 0) for x in entry):
            yield f"`{name}` holds others than numbers from 0"
        elif name.endswith("_types") and not all(isinstance(x, str) for x in entry):
            yield f"`{name}` holds others than names"


def _wrong_routing(config: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    """Routers that choose more experts, or groups of them, than there are."""
    for chosen, of in (("num_experts_per_tok", "num_experts"), ("topk_group", "n_group")):
        most, number = value(config, of), value(config, chosen)
        if not all(own_name(config, name) in row["fields"] for name in (chosen, of)) or not most:
            continue
        if type(most) is int and type(number) is int and not 0 <= number <= most:
            yield f"`{next(iter(spellings(config, chosen)), chosen)}` is {number}, of {most}"


def _wrong_lists_of_llama(config: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    types = config.get("layer_types") or ()
    if (unknown := next((x for x in types if x not in LAYER_TYPES), None)) is not None:
        yield f"`layer_types` names {shown(json.dumps(unknown))}; known are {', '.join(LAYER_TYPES)}"
    if any(x != "dense" for x in config.get("mlp_layer_types") or ()):
        yield "`mlp_layer_types` names others than dense"
    if "sliding_window_pattern" in row["fields"] and config.get("layer_types") is None:
        pattern = value(config, "sliding_window_pattern")
        if type(pattern) is not int or pattern < 1:
            yield f"`sliding_window_pattern` is {shown(json.dumps(pattern))}, not a number from 1"
    if value(config, "sliding_window") is None:
        if "sliding_attention" in types:
            yield "`layer_types` names sliding_attention, and there is no `sliding_window`"
        if row["fields"].get("sliding_window", [[], None])[1] and config.get("layer_types") is None and _slides(row):
            yield "`sliding_window` is null, and no `layer_types` say that no block needs it"


def _slides(row: Mapping[str, Any]) -> bool:
    """Whether a family decides by block number which blocks attend to a window, and some do."""
    return "layer_types" in row["fields"] and "use_sliding_window" not in row["fields"]


def _wrong_rope(config: Mapping[str, Any], detailed: bool) -> Iterator[str]:
    """`detailed`: for families of which it is known which part of their heads they rotate, and by which entries."""
    for name in ("rope_theta", "partial_rotary_factor", "rope_local_base_freq"):
        null_is_none = config.get(name) is None and name != "rope_local_base_freq"
        if name in config and not null_is_none and not _number(config[name], lambda x: x > 0):
            yield f"`{name}` is {shown(json.dumps(config[name]))}, not a number above 0"
    found = {name: config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name) is not None}
    said = config.get("rope_parameters")
    if config["model_type"] == _ROPE_BY_TYPE_ALONE and not (isinstance(said, dict) and {*LAYER_TYPES} & said.keys()):
        yield "`rope_parameters` lacks a rotary embedding for each kind of attention, which this family needs"
        return
    for name, entry in (found or {"rope_parameters": {}}).items():
        if not isinstance(entry, dict):
            yield f"`{name}` is {shown(json.dumps(entry))}, not an object"
            continue
        if (
            detailed
            and config["model_type"] not in _ROPE_BY_TYPE
            and (nested := [key for key in LAYER_TYPES if key in entry])
        ):
            yield f"`{name}` holds `{nested[0]}`, where this family has one rotary embedding for all blocks"
            continue
        for key in LAYER_TYPES:
            if not isinstance(entry.get(key) or {}, dict):
                yield f"`{name}`: `{key}` is {shown(json.dumps(entry[key]))}, not an object"
        of_types = [part for key, part in entry.items() if key in LAYER_TYPES and isinstance(part, dict)]
        for part in of_types or [entry]:
            yield from (f"`{name}`: {wrong}" for wrong in _wrong_rotation(part, config, detailed))


def _wrong_rotation(entry: Mapping[str, Any], config: Mapping[str, Any], detailed: bool) -> Iterator[str]:
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind == "mrope" and config["model_type"] in _NAMED_MROPE:
        kind = "default"
    if kind not in table()["rope_types"]:
        yield f"{shown(json.dumps(kind))} is no kind of rotary embedding"
        return
    if lacking := sorted(_ROPE.get(kind, set()) - entry.keys()):
        yield f"{kind} needs `{lacking[0]}`"
    theta = entry.get("rope_theta", config.get("rope_theta", 1e4))
    for name, part in {**entry, **_outside(kind, config), "rope_theta": theta}.items():
        if name in ("rope_type", "type", "truncate") or (part is None and name in _MAY_BE_NULL.get(kind, ())):
            continue
        if name in _LISTS:
            if not isinstance(part, list) or not all(_number(x, lambda x: x > 0) for x in part):
                yield f"`{name}` is not a list of numbers above 0"
        elif name == _SECTION:
            if not isinstance(part, list) or not all(type(x) is int and x >= 0 for x in part):
                yield f"`{name}` is {shown(json.dumps(part))}, not a list of whole numbers from 0"
        elif name in _ABOVE_0:
            if not _number(part, lambda x: x > 0):
                yield f"`{name}` is {shown(json.dumps(part))}, not a number above 0"
        elif detailed and part is not None and type(part) is not bool and not _number(part, lambda x: x >= 0):
            yield f"`{shown(name)}` is {shown(json.dumps(part))}, not a number from 0"
    if not detailed:
        return
    width = head_dim(config)
    model_type, usual = config["model_type"], _PARTIAL.get(config["model_type"], 1)
    partial = entry.get("partial_rotary_factor", config.get("partial_rotary_factor", usual))
    if partial is None and model_type in _PARTIAL:
        yield "`partial_rotary_factor` is null"
    partial = usual if partial is None else partial
    rotated = int(width * partial)
    if partial > 1 or rotated % 2 or rotated < 2:
        yield f"`partial_rotary_factor` is {partial}: of {width} dimensions that is no number of pairs"
    if rotated < width and kind not in _OF_PARTS and model_type not in _PARTIAL:
        yield f"`partial_rotary_factor` is {partial}, and {kind} rotates whole heads in this family"
    if rotated < width and kind == "proportional" and model_type in _PARTIAL:
        yield f"{kind} rotates whole heads, and this family parts of them"
    if model_type == "ministral3":
        if rotated < width:
            yield "`partial_rotary_factor` is below 1, and this family rotates whole heads"
        for name in _NEEDED_BY_MINISTRAL3 if entry else ():
            if not _number(entry.get(name), lambda x: x > 0):
                yield f"`{name}` is {shown(json.dumps(entry.get(name)))}, where this family needs a number above 0"
    section = entry.get(_SECTION, [])
    if isinstance(section, list) and section and sum(x for x in section if type(x) is int) != rotated // 2:
        yield f"`{_SECTION}` does not add up to the {rotated // 2} pairs of dimensions of a head"
    if kind == "dynamic" and rotated == 2:
        yield "dynamic needs heads of more than 2 rotated dimensions"
    if kind == "yarn" and theta == 1:
        yield "yarn needs a `rope_theta` other than 1"
    for name in _LISTS if kind == "longrope" else ():
        if len(entry[name]) != rotated // 2:
            yield f"`{name}` has {len(entry[name])} factors, for {rotated // 2} pairs of dimensions"


def _outside(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that transformers reads from the config itself, whatever the rotary embedding's own entries are."""
    name = "original_max_position_embeddings"
    return {name: config[name]} if name in config and kind in ("llama3", "yarn", "longrope") else {}


def _number(entry: Any, allowed: Callable[[float], bool]) -> bool:
    return type(entry) in (int, float) and math.isfinite(entry) and allowed(entry)


def _kind(entry: Any) -> str:
    return "null" if entry is None else type(entry).__name__

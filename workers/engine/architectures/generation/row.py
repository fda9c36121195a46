"""One family's row of `families.json`."""

from __future__ import annotations

import re
import types
import typing
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import ModuleList
from transformers import CONFIG_MAPPING, PreTrainedConfig

from workers.engine.architectures.generation.axes import Expressions
from workers.engine.architectures.generation.settings import BLOCKS, SETTINGS, UNEQUAL, default, entries, own_fields
from workers.engine.architectures.generation.shapes import Sorted, built, saved, sort
from workers.engine.architectures.kept_blocks import NAMES, entries_of_kept

Axis = str | int | None
Axes = dict[str, list[Axis]]
_CHANGE_NO_TENSOR = (
    "use_cache", "output_router_logits", "norm_topk_prob", "residual_in_fp32", "rescale_prenorm_residual",
    "use_mambapy", "use_associative_scan", "use_mamba_kernels", "tie_word_embeddings", "moe_shared_expert_overlap",
    "scale_embedding", "slow_but_exact", "reorder_and_upcast_attn", "scale_attn_weights", "summary_use_proj",
    "summary_proj_to_labels", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
)  # fmt: skip
_MAY_LACK = (
    "q_lora_rank", "shared_intermediate_size", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts",
    "shared_expert_intermediate_size", "num_local_experts", "num_experts", "n_routed_experts",
    "hidden_size_per_layer_input", "rel_extent",
)  # fmt: skip
"""Sizes of what a model may lack: null or 0."""
_CANONICAL = {
    "hidden_size": ("n_embd", "d_model"),
    "intermediate_size": ("ffn_dim", "ffn_hidden_size", "n_inner", "decoder_ffn_dim", "dff", "dim_ff"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads"),
    "num_key_value_heads": ("num_kv_heads",),
    "head_dim": ("kv_channels", "attention_head_dim"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "context_length", "model_max_length"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("moe_k", "moe_topk", "top_k_experts"),
}  # fmt: skip
"""Name of an entry -> names that families have for it instead."""
_UNLIKE_AXES = ("eos_token_id", "bos_token_id", "pad_token_id", "query_pre_attn_scalar")
_NUMBER = re.compile(r"^(layer_(idx|id|index)|_?layer_number)$")
_LEFT_OUT = ("longcat_flash",)
"""Families whose blocks are two layers by their configs."""
_KEPT = ([1, 2, 3], [0, 3, 5])


def family_row(model_type: str) -> dict[str, Any] | None:
    """None for a family without a single list of blocks, one a layer, or that transformers does not build in our
    sizes."""
    if model_type in _LEFT_OUT:
        return None
    with warnings.catch_warnings():  # of sizes too small for use
        warnings.simplefilter("ignore")
        return _row(CONFIG_MAPPING[model_type])


def _row(config_class: type[PreTrainedConfig]) -> dict[str, Any] | None:
    family = _Family.of(config_class)
    if family is None:
        return None
    tensors = family.tensors({})
    assert tensors is not None  # its plain settings can be built
    own, model = own_fields(config_class), family.model
    names = {field.name for field in own}
    lists = _lists(model.config, names)
    refused = {
        "heads_divide_hidden": {"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 44},
        "key_heads_even": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36},
    }
    named = _canonical(config_class)
    return {
        "class": type(model).__name__,
        "fields": {field.name: [kinds_of(field.type), default(field)] for field in own},
        "aliases": dict(config_class.attribute_map),
        "names": named,
        "nulls": family.nulls(),
        **tensors,
        "switches": family.switches(tensors),
        "head_from_hidden": not _mentions(tensors, named.get("head_dim", "head_dim")),
        "per_block": lists,
        "needs": ["head_dim"] if "head_dim" in names and not family.builds(head_dim=...) else [],
        **{
            rule: not family.builds(**{named.get(name, name): size for name, size in changes.items()})
            for rule, changes in refused.items()
        },
        "counts_blocks": _counts_blocks(family, lists, named.get("num_hidden_layers", "num_hidden_layers")),
        "ignored": sorted(str(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
    }


@dataclass(frozen=True)
class _Family:
    """A family, built in all settings."""

    config_class: type[PreTrainedConfig]
    settings: list[dict[str, Any]]
    model: Any
    plain: list[Sorted]
    expressions: Expressions

    @classmethod
    def of(cls, config_class: type[PreTrainedConfig]) -> _Family | None:
        settings = [entries(config_class, number) for number in range(SETTINGS)]
        uneven = {**settings[-1]} | {name: 88 for name in ("hidden_size", "n_embd", "d_model") if name in settings[-1]}
        try:
            models = [built(config_class, setting) for setting in settings[:-1]]
        except Exception:  # whatever it is: then it is not one of ours
            return None
        for last in (uneven, settings[-1]):  # heads that do not divide the hidden size tell two axes apart
            try:
                models.append(built(config_class, last))
            except Exception:
                continue
            settings[-1] = last
            break
        sorts = [found for model in models if (found := sort(saved(model))) is not None]
        if len(sorts) < SETTINGS or len(sorts[0].blocks) != BLOCKS:
            return None
        if any(re.search(r"\.\d+(\.|$)", name) for name in sorts[0].outside):  # they follow from the number of blocks
            return None
        return cls(config_class, settings, models[0], sorts, _expressions(config_class, settings))

    def builds(self, **changes: Any) -> bool:
        """Whether transformers builds it with these entries in our first setting; `...`: left out."""
        try:
            self.build(0, changes)
        except Exception:  # whatever it is
            return False
        return True

    def build(self, number: int, changes: Mapping[str, Any]) -> Any:
        known = {field.name for field in own_fields(self.config_class)} | {*self.config_class.attribute_map, "head_dim"}
        wanted = {**self.settings[number], **{name: entry for name, entry in changes.items() if name in known}}
        return built(self.config_class, {name: entry for name, entry in wanted.items() if entry is not ...})

    def sorted(self, number: int, changes: Mapping[str, Any]) -> Sorted | None:
        try:
            return sort(saved(self.build(number, changes)))
        except Exception:  # whatever it is
            return None

    def tensors(self, changes: Mapping[str, Any], first: Sorted | None = None) -> dict[str, Any] | None:
        """Tensors by where they lie, with expressions of their axes; None where the settings have different ones."""
        if not changes:
            found = self.plain
        else:
            sorts = [first, *(self.sorted(number, changes) for number in range(1, SETTINGS))]
            found = [one for one in sorts if one is not None]
        if len(found) < SETTINGS:
            return None
        try:
            return _described(found, self.expressions)
        except KeyError:  # a tensor that one of the settings lacks
            return None

    def switches(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Entry -> [whether it is true, or not 0, in `plain`, what changes where that is otherwise; None for a variant
        that is not supported]."""
        found = self._unequal(plain)
        for field in own_fields(self.config_class):
            name = field.name
            value = self.settings[0].get(name, default(field))
            if isinstance(value, bool) and name not in _CHANGE_NO_TENSOR:
                tried: list[Any] = [not value]
            elif name in _MAY_LACK and self.settings[0].get(name):
                value, tried = True, [None, 0] if "null" in kinds_of(field.type) else [0]
            else:
                continue
            for other in tried:
                first = self.sorted(0, {name: other})
                if first is None and other in (None, 0) and not isinstance(other, bool):
                    continue
                if first == self.plain[0]:
                    continue
                after = None if first is None else self.tensors({name: other}, first)
                found[name] = [value, None if after is None else _difference(plain, after)]
                break
        return found

    def _unequal(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The same for two entries that are equal in `plain`, as `one!=other`."""
        found = {}
        for name, (like, sizes) in UNEQUAL.items():
            if name in self.settings[0]:
                sorts = [self.sorted(number, {name: size}) for number, size in enumerate(sizes)]
                models = [one for one in sorts if one is not None]
                if len(models) == SETTINGS:
                    found[f"{name}!={like}"] = [False, _difference(plain, _described(models, self.expressions))]
        return found

    def nulls(self) -> dict[str, str]:
        """Entry -> the expression that transformers takes where it is null."""
        own = {field.name: None for field in own_fields(self.config_class) if "null" in kinds_of(field.type)}
        without: dict[str, Any] = own if "head_dim" in own else {**own, "head_dim": ...}
        sizes = [_axes_of(one) for one in self.plain]
        expressions = {place: self.expressions.of(tuple(one[place] for one in sizes)) for place in sizes[0]}
        found = {}
        for name, entry in without.items():
            products = {
                place: expression.split("*")
                for place, expression in expressions.items()
                if isinstance(expression, str) and "+" not in expression and name in expression.split("*")
            }
            if not products or name in _MAY_LACK:
                continue
            models = [self.sorted(number, {name: entry}) for number in range(SETTINGS)]
            place, factors = next(iter(products.items()))
            factors.remove(name)
            widths = [_axes_of(model).get(place) for model in models if model is not None]
            others = [self.expressions.value(factors, number) for number in range(SETTINGS)]
            if len(widths) < SETTINGS or any(width is None for width in widths):
                continue
            rest = [divmod(width or 0, other) for width, other in zip(widths, others, strict=True)]
            expression = self.expressions.of(tuple(width for width, _ in rest))
            if isinstance(expression, str) and name not in expression and not any(left for _, left in rest):
                found[name] = expression
        return found


def _expressions(config_class: type[PreTrainedConfig], settings: list[dict[str, Any]]) -> Expressions:
    of_blocks = {"num_hidden_layers", *_CANONICAL["num_hidden_layers"]}
    sizes = {
        name: tuple(setting[name] for setting in settings)
        for name in settings[0]
        if all(type(setting[name]) is int and setting[name] > 1 for setting in settings)
        and name not in of_blocks
        and name not in _UNLIKE_AXES
    }
    sizes |= {name: other for name, (_, other) in UNEQUAL.items() if name in sizes}
    also = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    sizes |= {name: tuple(s[name] for s in settings) for name in also if name in settings[0]}
    constant = {field.name: default(field) for field in own_fields(config_class) if field.name not in sizes}
    for name in ("expansion_ratio", "expand", "mamba_expand", "intermediate_multiple_size", "hc_mult", "hc_count"):
        if type(constant.get(name)) is int:
            sizes[name] = (constant[name],) * len(settings)
    hidden = next((name for name in ("hidden_size", *_CANONICAL["hidden_size"]) if name in sizes), None)
    heads = next((name for name in ("num_attention_heads", *_CANONICAL["num_attention_heads"]) if name in sizes), None)
    quotients = {}
    if hidden and heads:
        width = tuple(a // b for a, b in zip(sizes[hidden], sizes[heads], strict=True))
        quotients[f"{hidden}/{heads}"] = width
    for name in ("intermediate_size", *_CANONICAL["intermediate_size"]):
        if name in sizes:
            quotients[f"{name}/2"] = tuple(size // 2 for size in sizes[name])
    varied = {name: size for name, size in sizes.items() if len({*size}) > 1 or name in ("expand", "mamba_expand")}
    each = {name: BLOCKS for name in of_blocks if name in settings[0]}
    return Expressions({**varied, **{n: s for n, s in sizes.items() if n in constant}}, quotients, each)


def _described(sorts: list[Sorted], expressions: Expressions) -> dict[str, Any]:
    """Raises KeyError for a tensor that one of the models lacks."""
    first = sorts[0]
    parts: dict[str, list[Axes]] = {}
    kinds: list[list[str]] = []
    for number, block in enumerate(first.blocks):
        if (kind := sorted(block)) not in kinds:
            kinds.append(kind)
        for part, tensors in block.items():
            axes = {
                name: _axes(shape, [one.blocks[number][part][name] for one in sorts], expressions)
                for name, shape in sorted(tensors.items())
            }
            if axes not in parts.setdefault(part, []):
                parts[part].append(axes)
    return {
        "blocks": first.prefix,
        "outside": {
            name: _axes(shape, [one.outside[name] for one in sorts], expressions)
            for name, shape in sorted(first.outside.items())
        },
        "parts": dict(sorted(parts.items())),
        "kinds": kinds,
        "counts": {name: expressions.of(tuple(one.counts[name] for one in sorts)) for name in sorted(first.counts)},
    }


def _axes(shape: tuple[int, ...], shapes: list[tuple[int, ...]], expressions: Expressions) -> list[Axis]:
    return [expressions.of(tuple(one[axis] for one in shapes)) for axis in range(len(shape))]


def _axes_of(model: Sorted) -> dict[tuple[str, int], int]:
    """(tensor, axis) -> its size."""
    found = {(name, axis): size for name, shape in model.outside.items() for axis, size in enumerate(shape)}
    for number, block in enumerate(model.blocks):
        for tensors in block.values():
            for name, shape in tensors.items():
                found |= {(f"{number}.{name}", axis): size for axis, size in enumerate(shape)}
    return found


def _difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Entries of `other` that differ from `one`; None for tensors that it lacks. None if parts have other variants."""
    if one["blocks"] != other["blocks"]:
        return None
    changed: dict[str, Any] = {"outside": _changes(one["outside"], other["outside"]), "parts": {}}
    for part in sorted({*one["parts"], *other["parts"]}):
        before, after = one["parts"].get(part, [{}]), other["parts"].get(part, [{}])
        if before == after:
            continue
        if len(before) != len(after):
            changed["parts"][part] = {"all": after}
        else:
            changed["parts"][part] = {"each": [_changes(*pair) for pair in zip(before, after, strict=True)]}
    if one["kinds"] != other["kinds"]:
        changed["kinds"] = other["kinds"]
    if one["counts"] != other["counts"]:
        changed["counts"] = _changes(one["counts"], other["counts"])
    return {name: change for name, change in changed.items() if change}


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {name: other.get(name) for name in sorted({*one, *other}) if one.get(name) != other.get(name)}


def _mentions(tensors: Mapping[str, Any], entry: str) -> bool:
    """Whether an axis follows from an entry."""
    variants = [tensors["outside"], *(variant for part in tensors["parts"].values() for variant in part)]
    return any(
        entry in re.split(r"[*+]", axis)
        for variant in variants
        for axes in variant.values()
        for axis in axes
        if isinstance(axis, str)
    )


def _lists(config: Any, names: set[str]) -> list[str]:
    """Entries with one element per block."""
    said = {name: vars(config).get(name) for name in sorted(names)}
    return [name for name, entry in said.items() if isinstance(entry, list) and len(entry) == BLOCKS]


def _canonical(config_class: type[PreTrainedConfig]) -> dict[str, str]:
    """Name of an entry -> the family's own name of it, where that is another."""
    aliases = config_class.attribute_map
    known = ({field.name for field in own_fields(config_class)} | {*aliases.values()}) - {*aliases}
    found = {}
    for name, others in _CANONICAL.items():
        if name in aliases:
            found[name] = aliases[name]
        elif name not in known and (other := next((one for one in others if one in known), None)):
            found[name] = other
    return found


def _counts_blocks(family: _Family, lists: Collection[str], blocks: str) -> bool | dict[str, bool]:
    """Whether a block computes otherwise once others are gone, although the config says which it is; or the switches
    with which it does."""
    if _changes_with_number(family, lists, blocks, {}):
        return True
    kinds, found = len(_different(family.model)), {}
    for field in own_fields(family.config_class):
        value = family.settings[0].get(field.name, default(field))
        if (
            not isinstance(value, bool)
            or field.name in _CHANGE_NO_TENSOR
            or not family.builds(**{field.name: not value})
        ):
            continue
        other = {field.name: not value}
        if len(_different(family.build(0, other))) > kinds and _changes_with_number(family, lists, blocks, other):
            found[field.name] = not value
    return found or False


def _changes_with_number(family: _Family, lists: Collection[str], blocks: str, switched: Mapping[str, bool]) -> bool:
    model = family.build(0, switched)
    config = vars(model.config)
    said = family.settings[0] | {name: config[name] for name in (*lists, *NAMES) if config.get(name) is not None}
    before = _identities(model)
    for kept in _KEPT:
        changes = {**entries_of_kept(said, kept, lists, BLOCKS), blocks: len(kept), **switched}
        try:
            other = built(family.config_class, {**said, **changes})
        except Exception:  # whatever it is: no config says it
            return True
        if any(vars(other.config).get(name) != changes[name] for name in lists):
            return True
        if [before[block] for block in kept] != _identities(other):
            return True
    return False


def _different(model: Any) -> list[dict[str, Any]]:
    """The kinds of blocks."""
    found: list[dict[str, Any]] = []
    for identity in _identities(model):
        if identity not in found:
            found.append(identity)
    return found


def _identities(model: Any) -> list[dict[str, Any]]:
    """Every block by what it is made of: its tensors' shapes and its modules' constants, but for its number."""
    blocks = next(module for module in model.modules() if isinstance(module, ModuleList))  # the outermost
    return [_identity(block) for block in blocks]


def _identity(block: Any) -> dict[str, Any]:
    found: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}
    for name, module in block.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, int | float | str | None) and not _NUMBER.search(key):
                found[f"{name}.{key}"] = float(f"{value:.12g}") if isinstance(value, float) else value
    return found


def kinds_of(annotation: Any) -> list[str]:
    """JSON types that a field of a config takes, as transformers checks them; empty for any."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        parts = [kinds_of(part) for part in typing.get_args(annotation)]
        return sorted({kind for part in parts for kind in part}) if all(parts) else []
    plain = {int: "int", float: "float", bool: "bool", str: "str", types.NoneType: "null", list: "list", dict: "dict"}
    base = typing.get_origin(annotation) or annotation
    if isinstance(base, type) and issubclass(base, dict | list):  # a TypedDict is a dict
        base = dict if issubclass(base, dict) else list
    return [plain[base]] if base in plain else []

"""Coupled slices: the parts of a block's tensors that one unit owns, and that are removed together. Import-light.

A family is a row of like units along one axis of several tensors:

    head      a key/value head, the query heads that share it, and the columns that read them (in Llama, of o_proj)
    channel   rows that write it (of gate_proj and up_proj), and the column that reads it (of down_proj)

    hidden    a dimension of the vector that blocks read and add to: rows of the layers that write into it (o_proj and
              down_proj), columns of those that read it
    layer     a whole block, alone in its family

Removing a unit from all of them leaves a valid block; a hidden dimension goes from all blocks, and from embedding, head
and norms (`Layout.hidden_axis`). Norms of queries and keys are shared by all heads and stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.engine.architectures.architecture import Architecture, Family, Kind, LinearFacts, Member
from workers.engine.architectures.built import head_dim
from workers.engine.architectures.layouts import layouts
from workers.engine.architectures.mixers import LATENT
from workers.engine.architectures.wrappers import WHOLE
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts


def families(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]
) -> tuple[Family, ...]:
    """The families of every block, heads before channels; a block without such units has none of a kind. Raises
    UnsupportedModel where their number is not known."""
    found = []
    for block in range(architecture.blocks):
        if has_units(architecture, block, "head"):
            heads = _kv_heads(architecture, config, tensors, block)
            found.append(_of_block(architecture, block, "head", heads, tensors))
        if has_units(architecture, block, "channel"):
            (reader,) = architecture.reading("channel", block)
            found.append(_of_block(architecture, block, "channel", tensors[reader.weight].shape[1], tensors))
    return tuple(found)


_OF_ATTENTION = ("head",)
"""Kinds of unit whose keys and values are kept while a text is decoded."""


def has_units(architecture: Architecture, block: int, kind: Kind) -> bool:
    """Whether one layer of a block reads all units of a kind: heads of attention, channels of an MLP. Others mix tokens
    without heads, attend in a space of lower rank, or hold experts."""
    cached = architecture.caching(block)
    attends = bool(cached) and all(layer.writes == "head" for layer in cached)
    return len(architecture.reading(kind, block)) == 1 and (kind not in _OF_ATTENTION or attends)


def hidden_families(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]
) -> tuple[Family, ...]:
    """The hidden dimensions, as a family in every block: the same units in all. Raises UnsupportedModel."""
    if WHOLE in config:
        raise UnsupportedModel(
            f"{config[WHOLE]['model_type']}: its towers write into the hidden vector of the decoder too",
            "remove heads and channels with `structured`, or blocks with `depth`",
            field="/model/id",
        )
    if config["model_type"] not in architecture.layout.plain_hidden:
        raise UnsupportedModel(
            f"{config['model_type']}: hidden dimensions are removed only from {', '.join(_plain())}: other families "
            "compute with their number, or it is not known that they do not",
            "remove heads and channels with `structured`, or blocks with `depth`",
            field="/model/id",
        )
    found = []
    for block in range(architecture.blocks):
        writers = [Member(layer.weight, 0) for layer in architecture.writing("hidden", block)]
        readers = [Member(layer.weight, 1) for layer in architecture.reading("hidden", block)]
        members = (*writers, *readers)
        size = sum(tensors[member.tensor].parameters for member in members) // architecture.hidden_size
        found.append(Family(block, "hidden", architecture.hidden_size, members, size, 0, shared=True))
    return tuple(found)


def block_families(architecture: Architecture) -> tuple[Family, ...]:
    """Every block as a family of one unit, which owns all its linear layers."""
    found = []
    for block in range(architecture.blocks):
        layers = architecture.block(block)
        members = tuple(Member(layer.weight, 0) for layer in layers)
        parameters = sum(layer.parameters for layer in layers)
        found.append(Family(block, "layer", 1, members, parameters, 0, is_block=True))
    return tuple(found)


def _plain() -> list[str]:
    """Model types of which it is known that only norms compute with the number of hidden dimensions."""
    return sorted({name for layout in layouts() for name in layout.plain_hidden})


def check_alone(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts], kinds: Sequence[Kind]
) -> None:
    """Refuse to cut units that are nowhere, or that other tensors of their block depend on in an unknown way:
    UnsupportedModel.

    Nothing in the attention but its linear layers and norms of single heads may depend on which heads there are, and
    nothing in the MLP but its linear layers on which channels.
    """
    within: dict[Kind, dict[int, str]] = {}
    for kind in kinds:
        blocks = [block for block in range(architecture.blocks) if has_units(architecture, block, kind)]
        within[kind] = {block: _parent(architecture, block, kind) for block in blocks}
        if not blocks:
            others = [other for other in kinds if other != kind]
            raise UnsupportedModel(
                f"{architecture.model_type}: {_why_none(architecture, kind)}",
                f'remove {others[0]}s only (`"units": ["{others[0]}"]`)' if others else "use an unstructured pruner",
                field="/prune/units",
            )
    width, layout = head_dim(config) if "head" in kinds else 0, architecture.layout
    prunable = {layer.name for layer in architecture.layers}
    for name, facts in tensors.items():
        found, module = layout.split(name), name.rpartition(".")[0]
        if found is None or module in prunable or module.endswith("rotary_emb") or facts.parameters == 1:
            continue
        if (around := within.get("head", {}).get(found[0])) and found[1].startswith(around):
            if "norm" in module and facts.shape == (width,):
                continue
            all_heads = {layer.shape[0] for layer in architecture.writing("head", found[0])}
            if "norm" not in module:
                what = "follows the heads in a way that is not known"
            elif len(facts.shape) == 1 and facts.shape[0] not in all_heads:
                what = f"is a norm of heads of {facts.shape[0]} dimensions, where others have {width}"
            else:
                what = "is a norm over all heads"
            raise UnsupportedModel(
                f"{name.removesuffix('.weight')} {what}, so that none can be removed alone",
                'remove channels only (`"units": ["channel"]`), or use an unstructured pruner, or `depth`',
                field="/prune/units",
            )
        if (around := within.get("channel", {}).get(found[0])) and found[1].startswith(around):
            raise UnsupportedModel(
                f"{name.removesuffix('.weight')} follows all channels of the MLP, so that none can be removed alone",
                "use an unstructured pruner, or one that drops whole layers",
                field="/prune/units",
            )


def _why_none(architecture: Architecture, kind: Kind) -> str:
    """Why no block has units of a kind that could be removed alone."""
    latent = any(layer.writes == LATENT for layer in architecture.layers)
    reasons: dict[str, dict[str, bool]] = {
        "channel": {
            "the channels of its MLPs lie inside experts: remove them with `expert_channels`, or whole experts with "
            "`experts`": architecture.has_experts,
        },
        "head": {
            "its attention reads keys and values from a space of lower rank, which all heads share (MLA)": latent,
            "its blocks mix tokens by a recurrent state, without heads of attention": not architecture.caching(),
        },
    }
    none = f"its blocks have no {kind}s that could be removed alone"
    return next((reason for reason, holds in reasons.get(kind, {}).items() if holds), none)


def _parent(architecture: Architecture, block: int, kind: Kind) -> str:
    """Beginning, below its block, of the names of tensors beside the layer that reads the units; empty where that lies
    in the block itself."""
    (reader,) = architecture.reading(kind, block)
    parent = architecture.layout.below(reader.name).rpartition(".")[0]
    return f"{parent}." if parent else ""


def _of_block(
    architecture: Architecture, block: int, kind: Kind, units: int, tensors: Mapping[str, TensorFacts]
) -> Family:
    writers, (reader,) = architecture.writing(kind, block), architecture.reading(kind, block)
    return family_of(kind, units, writers, reader, tensors)


def family_of(
    kind: Kind, units: int, writers: Sequence[LinearFacts], reader: LinearFacts, tensors: Mapping[str, TensorFacts]
) -> Family:
    """The family of the units that these layers write and that one reads, with the writers' biases. Raises
    UnsupportedModel where a tensor is not made of so many units."""
    written = [Member(f"{layer.name}.{part}", 0) for layer in writers for part in ("weight", "bias")]
    members = tuple(member for member in (*written, Member(reader.weight, 1)) if member.tensor in tensors)
    for member in members:
        if tensors[member.tensor].shape[member.axis] % units:
            raise UnsupportedModel(
                f"{member.tensor}: {list(tensors[member.tensor].shape)} is not made of {units} units along axis "
                f"{member.axis}",
                "this model's heads are laid out in another way than Llama's: use an unstructured pruner",
                field="/model/id",
            )
    size = {member: tensors[member.tensor].parameters // units for member in members}
    biases = sum(size[member] for member in members if member.is_bias)
    return Family(reader.block, kind, units, members, sum(size.values()) - biases, biases)


def _kv_heads(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts], block: int
) -> int:
    """Number of key/value heads of a block: outputs of its key projection over the width of a head."""
    width, keys = head_dim(config), architecture.caching(block)[0]
    rows = tensors[keys.weight].shape[0]
    if rows % width:
        raise UnsupportedModel(
            f"{keys.name} has {rows} outputs, not a multiple of a head's {width}",
            "check that config.json belongs to the weights",
            field="/model/id",
        )
    return rows // width

"""What in a decoder block stands or falls together. Import-light.

A family is a row of like units along one axis of several tensors:

    head      a key/value head, the query heads that share it, and the columns of o_proj that read them
    channel   a row of gate_proj and up_proj, and the column of down_proj that reads their product

    hidden    a dimension of the vector that blocks read and add to: rows of o_proj and down_proj, columns of the others

Removing a unit from all of them leaves a valid block; a hidden dimension goes from all blocks, and from embedding, head
and norms (`hidden_axis`). Norms of queries and keys are shared by all heads and stay.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from workers.engine.architectures.architecture import Architecture, Family, Kind, Member
from workers.engine.architectures.built import head_dim
from workers.engine.architectures.llama import BLOCKS, EMBEDDING, HEAD, NATIVE_MODEL_TYPES, STREAMS, WRITERS
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts


def families(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]
) -> tuple[Family, ...]:
    """The families of every block, heads before channels. Raises UnsupportedModel where heads cannot be told apart."""
    found = []
    for block in range(architecture.blocks):
        prefix = f"{BLOCKS}.{block}."
        heads = _kv_heads(config, tensors, prefix)
        attention = [prefix + f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
        found.append(_family(block, "head", heads, attention, prefix + "self_attn.o_proj", tensors))
        channels = tensors[prefix + "mlp.down_proj.weight"].shape[1]
        mlp = [prefix + "mlp.gate_proj", prefix + "mlp.up_proj"]
        found.append(_family(block, "channel", channels, mlp, prefix + "mlp.down_proj", tensors))
    return tuple(found)


def hidden_families(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]
) -> tuple[Family, ...]:
    """The hidden dimensions as each block owns them, in its linear layers: the same units in all. UnsupportedModel."""
    if config["model_type"] not in NATIVE_MODEL_TYPES:
        raise UnsupportedModel(
            f"{config['model_type']}: hidden dimensions are removed only from {', '.join(NATIVE_MODEL_TYPES)}: some "
            "families compute with their number",
            "remove heads and channels with `structured`, or blocks with `depth`",
            field="/model/id",
        )
    found = []
    for block in range(architecture.blocks):
        names = [f"{BLOCKS}.{block}.{name}.weight" for name in (*WRITERS, *(n for n in STREAMS if n not in WRITERS))]
        members = tuple(Member(name, axis) for name in names if (axis := hidden_axis(name)) is not None)
        size = sum(tensors[member.tensor].parameters for member in members) // architecture.hidden_size
        found.append(Family(block, "hidden", architecture.hidden_size, members, size, 0))
    return tuple(found)


def hidden_axis(tensor: str) -> int | None:
    """Along which of its axes a tensor of the model lies on the hidden dimensions; None where on neither."""
    module, _, part = tensor.rpartition(".")
    if module in (EMBEDDING, HEAD):
        return 1 if part == "weight" else None
    if module.endswith(WRITERS):
        return 0
    if module.endswith(tuple(STREAMS)):
        return 1 if part == "weight" else None
    return None if module.endswith(("q_norm", "k_norm", "rotary_emb")) else 0  # norms of the hidden vector


def check_alone(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts], kinds: Container[str]
) -> None:
    """Refuse to cut units that something else of their block follows in a way that is not known: UnsupportedModel.

    Nothing in the attention but its linear layers and norms of single heads may depend on which heads there are, and
    nothing in the MLP but its linear layers on which channels.
    """
    width = head_dim(config)
    for name, facts in tensors.items():
        if not name.startswith(f"{BLOCKS}."):
            continue
        inside = name.split(".", 3)[3]
        module = inside.rpartition(".")[0]
        if module in STREAMS or module.endswith("rotary_emb"):
            continue
        if "head" in kinds and inside.startswith("self_attn."):
            if "norm" in module and facts.shape == (width,):
                continue
            what = "is a norm over all heads" if "norm" in module else "follows the heads in a way that is not known"
            raise UnsupportedModel(
                f"{name.removesuffix('.weight')} {what}, so that none can be removed alone",
                'remove channels only (`"units": ["channel"]`), or use an unstructured pruner, or `depth`',
                field="/prune/units",
            )
        if "channel" in kinds and inside.startswith("mlp."):
            raise UnsupportedModel(
                f"{name.removesuffix('.weight')} follows all channels of the MLP, so that none can be removed alone",
                "use an unstructured pruner, or one that drops whole layers",
                field="/prune/units",
            )


def _family(
    block: int, kind: Kind, units: int, writers: Sequence[str], reader: str, tensors: Mapping[str, TensorFacts]
) -> Family:
    names = [(f"{writer}.{part}", 0) for writer in writers for part in ("weight", "bias")] + [(f"{reader}.weight", 1)]
    members = tuple(Member(name, axis) for name, axis in names if name in tensors)
    for member in members:
        if tensors[member.tensor].shape[member.axis] % units:
            raise UnsupportedModel(
                f"{member.tensor}: {list(tensors[member.tensor].shape)} is not made of {units} units along axis "
                f"{member.axis}",
                "this model's heads are laid out in another way than Llama's: use an unstructured pruner",
                field="/model/id",
            )
    size = {member: tensors[member.tensor].parameters // units for member in members}
    biases = sum(size[member] for member in members if member.tensor.endswith(".bias"))
    return Family(block, kind, units, members, sum(size.values()) - biases, biases)


def _kv_heads(config: Mapping[str, Any], tensors: Mapping[str, TensorFacts], prefix: str) -> int:
    """Key/value heads of a block, by its key projection and the width of a head."""
    width = head_dim(config)
    rows = tensors[f"{prefix}self_attn.k_proj.weight"].shape[0]
    if rows % width:
        raise UnsupportedModel(
            f"{prefix}self_attn.k_proj has {rows} outputs, not a multiple of a head's {width}",
            "check that config.json belongs to the weights",
            field="/model/id",
        )
    return int(rows // width)

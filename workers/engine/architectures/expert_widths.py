"""Channels inside a mixture: of each expert and of the MLP beside them, and the config entries that say how many.

The configs of transformers say one width for all experts of a model. Other MLPs may follow from the same entry: a
shared one of `n_shared_experts` times that width, or those of blocks without experts. Import-light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.engine.architectures.architecture import Architecture, Family, LinearFacts
from workers.engine.architectures.coupled import family_of, has_units
from workers.engine.architectures.expected import axes_of
from workers.engine.architectures.fused import EACH, Fused
from workers.engine.architectures.mixtures import expert_of, renumbered
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts

EXPERT, SHARED, PLAIN = "expert_channel", "shared_channel", "channel"
"""Kinds of unit: channels of an expert, of the MLP of all tokens beside experts, and of the MLP of a block without."""
Axis = str | int | None
"""An expression of config entries; None where it is not known."""


def mixture_families(
    architecture: Architecture, said: Mapping[str, str], tensors: Mapping[str, TensorFacts]
) -> list[Family]:
    """The channels that may go where experts get narrower: of every expert and of every shared MLP, and of MLPs without
    experts whose width the same config entry says. `said`: what `entries` found."""
    found = []
    for block in range(architecture.blocks):
        for expert, layers in _by_expert(architecture, block).items():
            found.append(_family(f"{EXPERT}.{expert}", EXPERT, layers, tensors))
        tied = [SHARED, *([PLAIN] if PLAIN in said else [])]
        found += [
            _family(kind, kind, architecture.block(block), tensors)
            for kind in tied
            if has_units(architecture, block, kind)
        ]
    return found


def entries(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]
) -> dict[str, str]:
    """Kind -> the config entry that says how wide its MLPs are, which for all but the experts' may be theirs; a kind
    that the model lacks, or that has another entry and no experts, is left out. Raises UnsupportedModel."""
    stored = {_in_files(architecture, name)[0] for name in tensors}
    axes = dict(axes_of(config, stored, architecture.layout.turned))
    readers = {kind: [_width(architecture, axes, layer) for layer in architecture.reading(kind)] for kind in _KINDS}
    of_experts = {*readers[EXPERT]}
    (entry,) = of_experts if len(of_experts) == 1 else (None,)
    if not isinstance(entry, str) or not entry.isidentifier():
        raise UnsupportedModel(
            f"{architecture.model_type}: it is not known which entry of its config says how wide experts are",
            "drop whole experts with `experts`, or remove weights",
            field="/prune",
        )
    found = {EXPERT: entry}
    for kind in (SHARED, PLAIN):
        widths = {*readers[kind]}
        (width,) = widths if len(widths) == 1 else (None,)
        if isinstance(width, str) and entry in _factors(width):
            found[kind] = entry
        elif kind is SHARED and isinstance(width, str) and width.isidentifier():
            found[kind] = width
    return found


_KINDS = (EXPERT, SHARED, PLAIN)


def _by_expert(architecture: Architecture, block: int) -> dict[int, list[LinearFacts]]:
    found: dict[int, list[LinearFacts]] = {}
    for layer in architecture.block(block):
        if (expert := expert_of(architecture.layout, layer.name)) is not None:
            found.setdefault(expert, []).append(layer)
    return found


def _family(name: str, kind: str, layers: Sequence[LinearFacts], tensors: Mapping[str, TensorFacts]) -> Family:
    (reader,) = (layer for layer in layers if layer.reads == kind)
    return family_of(name, reader.shape[1], [layer for layer in layers if layer.writes == kind], reader, tensors)


def _width(architecture: Architecture, axes: Mapping[str, Sequence[Axis]], reader: LinearFacts) -> Axis:
    """The expression of a layer's number of inputs."""
    tensor, row = _in_files(architecture, reader.weight)
    if tensor not in axes:
        return None
    inner = list(axes[tensor])[1 if row is not None and row.stacked else 0 :]
    return inner[0 if row is not None and row.transposed else 1]


def _in_files(architecture: Architecture, name: str) -> tuple[str, Fused | None]:
    """The tensor of the files that holds a canonical one, and the row of the layout's table that says so."""
    layout = architecture.layout
    if not layout.stored or (found := layout.split(name)) is None:
        return name, None
    each = layout.below(renumbered(layout, name, EACH))
    row = next((row for row in layout.stored if found[1] in row.parts or each in row.parts), None)
    return (name, None) if row is None else (f"{layout.block(found[0])}.{row.tensor}", row)


def _factors(expression: str) -> set[str]:
    return {*expression.replace("/", "*").replace("+", "*").split("*")}

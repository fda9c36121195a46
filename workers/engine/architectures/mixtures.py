"""Mixtures of experts: how many a block has, what goes together with each, and the config entries that say so.

Import-light. E = experts of a block, K = experts that a token is sent to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.engine.architectures.architecture import Architecture, Layout
from workers.engine.architectures.built import value
from workers.engine.errors import UnsupportedModel
from workers.engine.files.model_files import shown
from workers.engine.files.safetensors_bytes import TensorFacts

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
_GROUPS = ("n_group", "num_expert_group")
_CHOSEN_GROUPS = ("topk_group",)


@dataclass(frozen=True)
class MixtureFacts:
    """The mixture of one block."""

    block: int
    experts: int


def mixtures(architecture: Architecture) -> list[MixtureFacts]:
    """Those of all blocks that have one, by block."""
    found = (mixture(architecture, block) for block in range(architecture.blocks))
    return [facts for facts in found if facts is not None]


def mixture(architecture: Architecture, block: int) -> MixtureFacts | None:
    """That of a block; None where it has none."""
    numbers = {expert_of(architecture.layout, layer.name) for layer in architecture.block(block)} - {None}
    return MixtureFacts(block, len(numbers)) if numbers else None


def expert_of(layout: Layout, name: str) -> int | None:
    """The number of the expert that a module or tensor of a block belongs to alone; None where it belongs to none."""
    found = _split(layout, name)
    return None if found is None else int(found[2])


def renumbered(layout: Layout, name: str, number: int | str) -> str:
    """The name of the same module or tensor of the expert with another number, or with `EACH` in its place; unchanged
    if it belongs to none."""
    found = _split(layout, name)
    return name if found is None else f"{found[1]}{number}{found[3]}"


def _split(layout: Layout, name: str) -> re.Match[str] | None:
    """(before, number, after) of the number of an expert."""
    return layout.expert_names.fullmatch(name)


def count_entry(config: Mapping[str, Any]) -> str:
    """The config entry that says how many experts a block has. Raises UnsupportedModel where none is known."""
    return _entry(config, _COUNTS, "how many experts a block has")


def chosen(config: Mapping[str, Any]) -> int:
    """K: how many experts a token is sent to, the most of any block. Raises UnsupportedModel where nothing says it."""
    found = value(config, _entry(config, _CHOSEN, "how many experts a token is sent to"))
    return max(found) if isinstance(found, list) else int(found)


def groups(config: Mapping[str, Any]) -> tuple[int, int]:
    """(number of consecutive groups of experts, of which the router chooses so many first); (1, 1) without groups."""
    if value(config, "topk_method") == "greedy":
        return 1, 1
    count, best = (
        next((value(config, name) for name in names if value(config, name)), 1) for names in (_GROUPS, _CHOSEN_GROUPS)
    )
    return (int(count), int(best)) if type(count) is int and type(best) is int and count > 1 else (1, 1)


def with_experts(config: Mapping[str, Any], experts: int) -> dict[str, Any]:
    """The config entries of a model whose blocks have so many experts."""
    name = count_entry(config)
    before = value(config, name)
    return {name: [experts] * len(before) if isinstance(before, list) else experts}


def _entry(config: Mapping[str, Any], names: tuple[str, ...], what: str) -> str:
    for name in names:  # an entry that is there counts before another's default
        if name in config:
            return name
    for name in names:
        if value(config, name) is not None:
            return name
    raise UnsupportedModel(
        f"{shown(config['model_type'])}: config.json does not say {what}",
        "use a config saved by transformers",
        field="/model/id",
    )


def of_each_expert(architecture: Architecture, tensors: Mapping[str, TensorFacts]) -> dict[str, int]:
    """Tensor name -> its axis of experts, of all tensors beside the experts' own that have one."""
    found: dict[str, int] = {}
    for facts in mixtures(architecture):
        for part in architecture.layout.mlps:
            names = {f"{architecture.layout.block(facts.block)}.{name}": axis for name, axis in part.of_each_expert}
            found |= {name: axis for name, axis in names.items() if name in tensors}
    return found


def is_router(architecture: Architecture, name: str) -> bool:
    """Whether a tensor is a router's weight or bias. Correction terms, which balance the load, are neither."""
    found = architecture.layout.split(name)
    parts = architecture.layout.mlps if found is not None else ()
    return name.endswith((".weight", "router.bias")) and any(
        below == (found or (0, ""))[1] for part in parts for below, _ in part.of_each_expert
    )

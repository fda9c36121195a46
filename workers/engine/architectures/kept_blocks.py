"""Config entries that say which block is which, where blocks go or are there more often. Import-light."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from workers.engine.architectures.built import family, is_set, value

_NUMBERS = ("mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "moe_layers", "local_layer_ids", "ple_layer_ids")
"""Entries that list blocks by their numbers."""
FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Entries that say of how many blocks, from the first on, something holds."""
_LAST = ("moe_layer_end_index",)
"""Entries with the number of the last block of which something holds; -1 is the last of all."""
_STEP, _DENSE = "decoder_sparse_step", "mlp_only_layers"
_PATTERN = "hybrid_override_pattern"
_ATTENTION_TYPES = "attention_types"
_OF_ROOT = "scale_depth"
"""Entry of which what every block adds is scaled by a share: it over the root of the number of blocks."""
_INTERVAL, _SHARED = "moe_layer_interval", "num_kv_shared_layers"
NAMES = (*_NUMBERS, *FIRST, *_LAST, _STEP, _OF_ROOT)
"""Entries whose defaults count, too."""


def bound_to_numbers(config: Mapping[str, Any]) -> str | None:
    """Why a block computes otherwise once others are gone, or added; None where it does not."""
    row = family(config["model_type"])
    why = "its blocks compute with their own number, which changes when others go or are added"
    counts = False if row is None else row["counts_blocks"]
    if counts is True:
        return why
    switch = next((name for name, state in (counts or {}).items() if is_set(config, name) == state), None)
    if switch is not None:
        return f"{why} (`{switch}`)"
    if value(config, _INTERVAL) not in (None, 1):
        return f"{why} (`{_INTERVAL}`)"
    if value(config, _SHARED):
        return f"some of its blocks use the keys and values of others (`{_SHARED}`)"
    return None


def entries_of_kept(
    config: Mapping[str, Any], kept: Sequence[int], lists: Collection[str], blocks: int
) -> dict[str, Any]:
    """Entries that differ once only the blocks `kept`, of so many, are left. `lists`: entries with an element each."""
    changed: dict[str, Any] = {
        name: [config[name][block] for block in kept] for name in lists if isinstance(config.get(name), list)
    }
    for name in _NUMBERS:
        if isinstance(config.get(name), list):
            changed[name] = [new for new, block in enumerate(kept) if block in config[name]]
    for name in FIRST:
        if type(config.get(name)) is int:
            changed[name] = sum(block < config[name] for block in kept)
    for name in _LAST:
        if type(config.get(name)) is int and config[name] >= 0:
            changed[name] = sum(block <= config[name] for block in kept) - 1
    if type(step := config.get(_STEP)) is int and step > 1:  # every so many blocks have experts: said block by block
        dense = [block for block in range(blocks) if (block + 1) % step or block in (config.get(_DENSE) or ())]
        changed |= {_STEP: 1, _DENSE: [new for new, block in enumerate(kept) if block in dense]}
    if isinstance(scale := config.get(_OF_ROOT), int | float):
        changed[_OF_ROOT] = scale * math.sqrt(len(kept) / blocks)
    if isinstance(pattern := config.get(_PATTERN), str) and len(pattern) == blocks:
        changed[_PATTERN] = "".join(pattern[block] for block in kept)
    if isinstance(groups := config.get(_ATTENTION_TYPES), list):  # [[types, times], ...], as GPT-Neo writes them
        types = [one for group, times in groups for _ in range(times) for one in group]
        changed[_ATTENTION_TYPES] = [[[types[block] for block in kept], 1]]
    return changed

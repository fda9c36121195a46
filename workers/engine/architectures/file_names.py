"""Names of tensors in files that transformers loads although they are not those that it saves. Import-light.

A base model's tensors lack the beginning of their names (`h.0.*` for `transformer.h.0.*`), and old checkpoints hold
masks of the attention, or blocks that only train with others. A wrapper's names say where its decoder is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from workers.engine.architectures.built import block_count, family
from workers.engine.architectures.expected import names_below
from workers.engine.architectures.wrappers import WHOLE, names_of

_MASKS = r"\b(attn|attention)\.(bias|masked_bias|causal_mask)$"
"""Buffers of old checkpoints, unless a family has tensors of these names."""


def names_in_files(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Name of each tensor -> its name in the files, without those in blocks that transformers ignores."""
    there = list(names)
    wrapped = names_of(config.get(WHOLE, {}), there)
    theirs = {wrapped.inside(name): name for name in there}
    return {name: theirs[old] for name, old in _saved_names(config, theirs).items()}


def _saved_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Name of each tensor of a decoder on its own, as transformers saves it -> its given name."""
    row = family(config["model_type"])
    there = list(names)
    if row is None:
        return {name: name for name in there}
    root, _, blocks = row["blocks"].partition(".")
    bare = not any(name.startswith(f"{root}.") for name in there)
    lacks = bare and any(name.startswith(f"{blocks}.") for name in there)
    outside, ignored, count = row["outside"], re.compile("|".join([_MASKS, *row["ignored"]])), block_count(config)
    known, found = names_below(row), {}
    for old in there:
        name = f"{root}.{old}" if lacks and old not in outside else old
        number, dot, below = name.removeprefix(f"{row['blocks']}.").partition(".")
        inside = bool(dot) and name.startswith(f"{row['blocks']}.") and number.isascii() and number.isdigit()
        beyond = inside and count is not None and int(number) >= count
        if inside and ignored.search(name) and (beyond or not known(below)):
            continue
        found[name] = old
    return found

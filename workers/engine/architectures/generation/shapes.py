"""Shapes of the tensors that transformers saves of a model, sorted by kind of block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.initialization import no_init_weights

from workers.engine.architectures.fused import EACH
from workers.engine.architectures.wrappers import WRAPPERS

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
_IN_BLOCK = re.compile(r"(.*?)\.(\d+)\.(.+)", re.ASCII)


class TextTower(PreTrainedModel):  # type: ignore[misc]  # untyped in transformers
    """A decoder that transformers has in wrappers only, under the names of a language model of its own."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        wrapper = next(name for name, one in WRAPPERS.items() if one.text == config.model_type)
        changes = get_checkpoint_conversion_mapping(wrapper) or ()
        self._weight_conversions = [change for change in changes if isinstance(change, WeightConverter)] or None


def built(config_class: type[PreTrainedConfig], entries: Mapping[str, Any]) -> Any:
    """The model of a config on the meta device. Raises whatever transformers does."""
    config = config_class(**entries)
    with torch.device("meta"), no_init_weights():
        if config_class in MODEL_FOR_CAUSAL_LM_MAPPING:
            return AutoModelForCausalLM.from_config(config)
        return TextTower(config)


def saved(model: Any) -> Shapes:
    """Name -> shape of its tensors, as `save_pretrained` would name and shape them, with a head even if it is tied."""
    tensors = revert_weight_conversion(model, dict(model.state_dict()))
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Sorted:
    """Tensors of a model, by where they lie: outside of blocks, or in a part of one."""

    prefix: str
    """Of the blocks' tensors."""
    outside: Shapes
    blocks: list[dict[str, Shapes]]
    """Block -> the first name below it -> tensors. `EACH` stands for the number of what is there several times."""
    counts: dict[str, int]
    """Name below the block with `EACH` -> how many there are."""


def sort(shapes: Shapes) -> Sorted | None:
    """None for a model without a list of blocks, or with several."""
    found = [match for name in shapes if (match := _IN_BLOCK.fullmatch(name))]
    prefixes = {match[1] for match in found}
    if len(prefixes) != 1:
        return None
    (prefix,) = prefixes
    inside: dict[int, Shapes] = {}
    for match in found:
        inside.setdefault(int(match[2]), {})[match[3]] = shapes[match[0]]
    blocks: list[dict[str, Shapes]] = []
    counts: dict[str, int] = {}
    for _, tensors in sorted(inside.items()):
        folded = _folded(tensors, counts)
        parts: dict[str, Shapes] = {}
        for name, shape in folded.items():
            parts.setdefault(part_of(name), {})[name] = shape
        blocks.append(parts)
    outside = {name: shape for name, shape in shapes.items() if not name.startswith(f"{prefix}.")}
    return Sorted(prefix, outside, blocks, counts)


def part_of(name: str) -> str:
    """The part of its block that a tensor belongs to: the first name below it."""
    return name.partition(".")[0]


def _folded(tensors: Shapes, counts: dict[str, int]) -> Shapes:
    """Tensors that are there several times, by number, as one each."""
    numbered: dict[str, dict[int, Shape]] = {}
    found: Shapes = {}
    for name, shape in tensors.items():
        if match := re.fullmatch(r"(.*\.)(\d+)(\..*)", name, re.ASCII):
            numbered.setdefault(f"{match[1]}{EACH}{match[3]}", {})[int(match[2])] = shape
        else:
            found[name] = shape
    for name, shapes in numbered.items():
        if len({*shapes.values()}) == 1 and {*shapes} == {*range(len(shapes))}:
            found[name] = shapes[0]
            counts[name] = len(shapes)
        else:
            found |= {name.replace(EACH, str(number)): shape for number, shape in shapes.items()}
    return found

"""Structure of a result: which blocks remain, how wide, and its config. Import-light."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from workers.engine.architectures.built import (
    block_count,
    family,
    head_dim,
    like_llama,
    obeyed,
    own_name,
    per_block,
    spelled,
    value,
)
from workers.engine.architectures.entries import check_result
from workers.engine.architectures.kept_blocks import entries_of_kept
from workers.engine.architectures.wrappers import WHOLE, WRAPPERS
from workers.engine.errors import UnsupportedModel

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture, Layout
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.sources.resolve import ModelSource


@dataclass(frozen=True)
class Outcome:
    """Structure of a result whose blocks have the dense shapes. Removals that make blocks narrower extend it."""

    layout: Layout
    """Of the dense model."""
    blocks: Sequence[int]
    """For each block of the result, in its order, the dense block that it is or, where that one occurred before, that
    it is made like. Those that are dense blocks ascend."""

    cut: ClassVar[bool] = False
    """Whether tensors of the blocks that stay are narrower than they were."""
    says_head_dim: ClassVar[bool] = True
    """Whether the config of narrower blocks is to say how wide a head is, which families derive from sizes that
    change."""
    field: ClassVar[str] = "/prune/sparsity"
    """Field of the spec that an error names where no config can describe the structure."""

    @cached_property
    def numbers(self) -> dict[int, int]:
        """Dense block that stays -> its number in the result."""
        found: dict[int, int] = {}
        for index, block in enumerate(self.blocks):
            found.setdefault(block, index)
        return found

    @property
    def new(self) -> list[int]:
        """Blocks of the result that the dense model does not have, by their numbers in it."""
        return [index for index, block in enumerate(self.blocks) if self.numbers[block] != index]

    @property
    def uniform(self) -> bool:
        """Whether all blocks have one shape, as stock configs require."""
        return True

    def renamed(self, name: str) -> str | None:
        """The name that a module or tensor of the dense model has in the result; None where it is dropped."""
        found = self.layout.split(name)
        if found is None:
            return name
        return self.layout.in_block(name, self.numbers[found[0]]) if found[0] in self.numbers else None

    def narrow(self, shapes: dict[str, list[int]]) -> None:
        """Change the shapes of the dense model's tensors, of the blocks that stay, into those of the result, and take
        out what is dropped of them."""

    def entries(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Config entries that differ from the dense model's."""
        return {}

    def block_entries(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Config entries for blocks of different shapes, given the other entries."""
        return {}

    def tensor_shapes(self, tensors: Mapping[str, TensorFacts]) -> dict[str, tuple[int, ...]]:
        """Tensor name in the dense model -> its shape in the result; what is dropped is left out."""
        kept = set(self.blocks)
        left = {
            name: list(facts.shape)
            for name, facts in tensors.items()
            if (found := self.layout.split(name)) is None or found[0] in kept
        }
        self.narrow(left)
        return {name: tuple(shape) for name, shape in left.items()}

    def parameters(self, tensors: Mapping[str, TensorFacts]) -> dict[str, int]:
        """Tensor name in the dense model -> its parameters in the result, with those of the tensors that are made like
        it; what is dropped is left out."""
        times = Counter(self.blocks)
        return {
            name: math.prod(shape) * (1 if (within := self.layout.split(name)) is None else times[within[0]])
            for name, shape in self.tensor_shapes(tensors).items()
        }

    def share_gone(self, architecture: Architecture, tensors: Mapping[str, TensorFacts]) -> float:
        """Fraction of the prunable parameters that the result lacks."""
        left = self.parameters(tensors)
        kept = sum(left.get(layer.weight, 0) for layer in architecture.layers)
        return 1 - kept / architecture.prunable_parameters


def config_after(config: Mapping[str, Any], outcome: Outcome, source: ModelSource | None = None) -> dict[str, Any]:
    """The dense model's `config.json` with the structure of the result. Raises UnsupportedModel.

    With the dense model, it also raises where transformers would build other shapes from it, e.g. where it derives a
    head's width from their number. Where blocks go or are added, `config` must have the entries of blocks that
    transformers would otherwise make up from their numbers.
    """
    row, changed, blocks = family(config["model_type"]), obeyed(config), block_count(config) or 0
    if len(outcome.blocks) != blocks:
        changed |= entries_of_kept(changed, outcome.blocks, per_block(config), blocks)
        changed |= spelled(config, {"num_hidden_layers": len(outcome.blocks)})
    said = outcome.entries(config)
    if outcome.cut and outcome.says_head_dim:
        said = {"head_dim": head_dim(config), **said}
    if row is not None and not like_llama(row):  # others may have no entry for it; blocks may read one that is no field
        fields = (*row["fields"], *(() if row["head_from_hidden"] else ["head_dim"]))
        known = {own_name(config, name) for name in fields}
        said = {name: entry for name, entry in said.items() if own_name(config, name) in known}
    changed |= spelled(config, said)
    if outcome.cut and config["model_type"] == "llama" and changed["hidden_size"] % changed["num_attention_heads"]:
        changed |= _as_mistral(changed, outcome.field)
    if outcome.cut and outcome.uniform and source is not None:
        shapes = outcome.tensor_shapes(source.tensors)
        check_result(outcome.layout, changed, shapes, source.stored, outcome.field)
    if not outcome.uniform:
        changed |= outcome.block_entries(changed)
    if WHOLE in config:
        changed[WHOLE] = config[WHOLE]
        _refuse_shared(config, changed, outcome.field)
    return changed


def _refuse_shared(config: Mapping[str, Any], changed: Mapping[str, Any], field: str) -> None:
    """Refuse to change an entry by which a wrapper builds other parts than its decoder too. UnsupportedModel."""
    model_type = config[WHOLE]["model_type"]
    for name in WRAPPERS[model_type].shared:
        if value(changed, name) != value(config, name):
            raise UnsupportedModel(
                f"{model_type}: `{name}` of its decoder's config is the width of another of its parts too",
                "remove heads alone, whole blocks with `depth`, or weights",
                field=field,
            )


def _as_mistral(config: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Entries that turn a Llama's config into a Mistral's, which computes the same with any number of heads.

    transformers refuses a `LlamaConfig` whose heads do not divide the hidden size, although nothing depends on it.
    """
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise UnsupportedModel(
            f"llama: {config['num_attention_heads']} query heads do not divide the hidden size of "
            f"{config['hidden_size']}, as its config must; Mistral's need not, but has no biases",
            "remove channels only, or so much that the heads divide the hidden size",
            field=field,
        )
    return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}

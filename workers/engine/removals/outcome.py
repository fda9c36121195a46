"""What remains of a model's structure: which blocks, how wide, and the config that says so. Import-light."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.engine.architectures.built import PER_LAYER_LISTS, head_dim, key_heads, obeyed, value
from workers.engine.architectures.entries import check_result
from workers.engine.architectures.per_layer import MODELING, PER_LAYER, modeling_class
from workers.engine.errors import UnsupportedModel

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Family, Layout
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.removals.widths import Widths


@dataclass(frozen=True)
class Outcome:
    """Structure of the result."""

    layout: Layout
    """Of the dense model."""
    blocks: Sequence[int]
    """Decoder blocks that stay, by their index in the dense model, ascending."""
    families: Sequence[Family] = ()
    widths: Widths | None = None
    """Units that stay in each family; None where none goes."""
    hidden: tuple[int, int] | None = None
    """(K, D) where K of D hidden dimensions stay; None where none goes."""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(key/value heads, channels) of every block that stays; empty where none is cut."""
        if self.widths is None:
            return []
        return [(self.widths[block, "head"], self.widths[block, "channel"]) for block in self.blocks]

    @property
    def uniform(self) -> bool:
        """Whether all blocks have one shape, which one config can tell."""
        return len(set(self.shapes)) <= 1

    @property
    def cut(self) -> bool:
        """Whether tensors of the blocks that stay are narrower than they were."""
        return self.widths is not None or self.hidden is not None

    def tensor_shapes(self, tensors: Mapping[str, TensorFacts]) -> dict[str, tuple[int, ...]]:
        """Tensor name in the dense model -> its shape in the result; what is dropped is left out."""
        kept = set(self.blocks)
        left = {
            name: list(facts.shape)
            for name, facts in tensors.items()
            if (found := self.layout.split(name)) is None or found[0] in kept
        }
        if self.widths is not None:
            for family in self.families:
                for member in family.members:
                    if member.tensor in left:
                        unit = left[member.tensor][member.axis] // family.units
                        left[member.tensor][member.axis] = unit * self.widths[family.block, family.kind]
        if self.hidden is not None:
            for name, shape in left.items():
                if (axis := self.layout.hidden_axis(name)) is not None:
                    shape[axis] = self.hidden[0]
        return {name: tuple(shape) for name, shape in left.items()}

    def parameters(self, tensors: Mapping[str, TensorFacts]) -> dict[str, int]:
        """Tensor name in the dense model -> its parameters in the result; what is dropped is left out."""
        return {name: math.prod(shape) for name, shape in self.tensor_shapes(tensors).items()}


def config_after(
    config: Mapping[str, Any], outcome: Outcome, tensors: Mapping[str, TensorFacts] | None = None
) -> dict[str, Any]:
    """The dense model's `config.json` with the structure of the result. Raises UnsupportedModel.

    Given the dense model's tensors, also where transformers would build other shapes by it, as where it derives a
    head's width from their number. Where blocks go, it must have the `PER_LAYER_LISTS` that transformers would
    otherwise make up from blocks' numbers.
    """
    changed = obeyed(config)
    if len(outcome.blocks) < config["num_hidden_layers"]:
        _fewer_blocks(changed, outcome.blocks)
    if outcome.cut:
        changed["head_dim"] = head_dim(config)
    if outcome.hidden is not None:
        kept, of = outcome.hidden
        changed["hidden_size"] = kept
        changed["rms_norm_eps"] = value(config, "rms_norm_eps") * of / kept
    if outcome.widths is not None:
        shared_by = config["num_attention_heads"] // key_heads(config)
        heads, channels = max(outcome.shapes, key=lambda shape: shape[0])[0], max(c for _, c in outcome.shapes)
        changed |= {
            "num_key_value_heads": heads,
            "num_attention_heads": heads * shared_by,
            "intermediate_size": channels,
        }
    field = "/prune/sparsity" if outcome.widths is None else "/prune/units"
    if outcome.cut and config["model_type"] == "llama" and changed["hidden_size"] % changed["num_attention_heads"]:
        changed |= _as_mistral(changed, field)
    if outcome.cut and outcome.uniform and tensors is not None:
        check_result(outcome.layout, changed, outcome.tensor_shapes(tensors), field)
    if not outcome.uniform:
        changed |= _per_layer(changed, outcome)
    return changed


def _per_layer(config: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """What says that blocks differ, in transformers' own words, and which classes in `MODELING` build them so: the
    stock ones make all alike. vLLM reads the same entries and builds on the base class."""
    architecture, module = modeling_class(config), MODELING.removesuffix(".py")
    shared_by = config["num_attention_heads"] // config["num_key_value_heads"]
    return {
        PER_LAYER: {
            str(block): {
                "num_attention_heads": heads * shared_by,
                "num_key_value_heads": heads,
                "intermediate_size": channels,
            }
            for block, (heads, channels) in enumerate(outcome.shapes)
        },
        # Whoever asks for the number of heads, as many tools do, gets the widest block's instead of an exception.
        "allow_global_per_layer_attribute_access": True,
        "architectures": [architecture],
        "auto_map": {
            "AutoModel": f"{module}.{architecture.replace('ForCausalLM', 'Model')}",
            "AutoModelForCausalLM": f"{module}.{architecture}",
        },
    }


def _as_mistral(config: Mapping[str, Any], field: str) -> dict[str, Any]:
    """What makes a Llama's config a Mistral's: the same computation, and transformers takes any number of heads there.

    A `LlamaConfig` is refused unless its heads divide the hidden size, although nothing else needs that.
    """
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise UnsupportedModel(
            f"llama: {config['num_attention_heads']} query heads do not divide the hidden size of "
            f"{config['hidden_size']}, as its config must; Mistral's need not, but has no biases",
            "remove channels only, or so much that the heads divide the hidden size",
            field=field,
        )
    return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}


def _fewer_blocks(config: dict[str, Any], kept: Sequence[int]) -> None:
    config["num_hidden_layers"] = len(kept)
    for name in PER_LAYER_LISTS:
        if isinstance(config.get(name), list):
            config[name] = [config[name][block] for block in kept]

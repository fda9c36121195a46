"""The Llama layout: seven linear layers per decoder block, reading four input streams.

Recognised by structure (tensor names, shapes, config), so it holds for whatever shares it: Llama, Mistral, Qwen2 (with
biases), Qwen3 (with query and key norms), SmolLM and others. D = hidden size, F = MLP width.

    attention_input   -> q_proj, k_proj, v_proj
    attention_output  -> o_proj
    mlp_input         -> gate_proj, up_proj
    mlp_hidden        -> down_proj
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.engine.errors import UnsupportedModel
from workers.engine.shards import TensorFacts
from workers.engine.stats import LinearFacts

BLOCKS = "model.layers"
EMBEDDING = "model.embed_tokens"
FINAL_NORM = "model.norm"
HEAD = "lm_head"
"""Stored only where it is not tied to the embedding."""
STREAMS = {
    "self_attn.q_proj": "attention_input",
    "self_attn.k_proj": "attention_input",
    "self_attn.v_proj": "attention_input",
    "self_attn.o_proj": "attention_output",
    "mlp.gate_proj": "mlp_input",
    "mlp.up_proj": "mlp_input",
    "mlp.down_proj": "mlp_hidden",
}
"""Linear layer in a block -> the inputs it reads. Order of the forward pass."""
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
"""Linear layers whose outputs are added to the hidden vector; the others read it, but for what o_proj and down_proj
read."""
NATIVE_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Tried families, whose modelling code is transformers' own even where a repository also brings some."""
FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama layout."""

    model_type: str
    blocks: int
    layers: tuple[LinearFacts, ...]
    """All prunable layers, block by block in the order of the forward pass."""
    hidden_size: int
    vocabulary: int
    context_length: int

    @property
    def prunable_parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    def block(self, index: int) -> list[LinearFacts]:
        """The layers of one block."""
        return [layer for layer in self.layers if layer.block == index]

    def streams(self, block: int) -> dict[str, list[LinearFacts]]:
        """Stream -> the layers of one block that read it, in the order of the forward pass."""
        found: dict[str, list[LinearFacts]] = {}
        for layer in self.block(block):
            found.setdefault(layer.stream, []).append(layer)
        return found


def recognise(config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]) -> Architecture:
    """The model's structure, or UnsupportedModel naming what is missing or too much."""
    model_type = config["model_type"]
    if "auto_map" in config and model_type not in NATIVE_MODEL_TYPES:
        raise _unsupported(model_type, "its modelling code comes with the weights, and such code is never run")
    if "quantization_config" in config:
        raise _unsupported(model_type, "its weights are quantised", "use the unquantised model")
    blocks = _block_count(model_type, config, tensors)
    layers = tuple(layer for block in range(blocks) for layer in _block_layers(model_type, block, tensors))
    embedding = tensors.get(f"{EMBEDDING}.weight")
    if embedding is None:
        raise _unsupported(model_type, f"no `{EMBEDDING}.weight`")
    vocabulary, hidden_size = embedding.shape
    context_length = config.get("max_position_embeddings")
    if not isinstance(context_length, int):
        raise _unsupported(model_type, "config.json has no `max_position_embeddings`, the length of its context")
    return Architecture(model_type, blocks, layers, hidden_size, vocabulary, context_length)


def _block_count(model_type: str, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]) -> int:
    pattern = re.compile(re.escape(BLOCKS) + r"\.(\d+)\.")
    found = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    if not found:
        raise _unsupported(
            model_type, f"no tensors named `{BLOCKS}.0.*`; the first one is `{min(tensors, default='')}`"
        )
    blocks = len(found)
    if found != set(range(blocks)) or config.get("num_hidden_layers") != blocks:
        raise _unsupported(
            model_type,
            f"config.json says {config.get('num_hidden_layers')} blocks, the weights hold {blocks} "
            f"(up to number {max(found)})",
            "check that the download is complete",
        )
    return blocks


def _block_layers(model_type: str, block: int, tensors: Mapping[str, TensorFacts]) -> list[LinearFacts]:
    prefix = f"{BLOCKS}.{block}."
    inside = {name.removeprefix(prefix): facts for name, facts in tensors.items() if name.startswith(prefix)}
    matrices = {name.removesuffix(".weight") for name, facts in inside.items() if len(facts.shape) > 1}
    others = sorted(matrices - set(STREAMS))
    if missing := [name for name in STREAMS if name not in matrices]:
        beside = f"; it has {', '.join(f'`{name}`' for name in others[:3])}" if others else ""
        raise _unsupported(model_type, f"no `{missing[0]}` in block {block}{beside}")
    if others:
        raise _unsupported(model_type, f"block {block} also has the matrix `{others[0]}`, whose use is not known")
    layers = []
    for name, stream in STREAMS.items():
        facts = inside[f"{name}.weight"]
        if facts.dtype not in FLOATS or len(facts.shape) != 2:
            raise _unsupported(model_type, f"`{prefix}{name}` is {facts.dtype} {list(facts.shape)}, not a float matrix")
        layers.append(LinearFacts(prefix + name, block, stream, (facts.shape[0], facts.shape[1])))
    for stream in STREAMS.values():
        if len(widths := {layer.shape[1] for layer in layers if layer.stream == stream}) > 1:
            raise _unsupported(model_type, f"block {block}: layers that read one {stream} differ in width: {widths}")
    return layers


def _unsupported(
    model_type: str,
    why: str,
    hint: str = "use a dense decoder of the Llama layout: Llama, Mistral, Qwen2, Qwen3, SmolLM",
) -> UnsupportedModel:
    return UnsupportedModel(f"{model_type}: {why}", hint, field="/model/id")

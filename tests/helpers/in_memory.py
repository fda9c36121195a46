"""Random models that lie in no file, with their structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from workers.engine.architectures.architecture import Architecture, Family
from workers.engine.architectures.coupled import block_families, families, hidden_families
from workers.engine.architectures.recognise import recognise
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.model.views import held

LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, head_dim=4, max_position_embeddings=32,
)  # fmt: skip
"""Three key/value heads that two query heads share each."""
GPT2 = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=False)
"""Its matrices are transposed, those of queries, keys and values lie in one, and all have biases."""


@dataclass(frozen=True)
class InMemory:
    model: Any
    architecture: Architecture
    families: tuple[Family, ...]

    def reader(self, family: Family) -> torch.Tensor:
        """The weight [O, I] that reads a family's units: a view of the parameter where it is one, transposed or not."""
        return self.read(family.reader.tensor)

    def read(self, name: str) -> torch.Tensor:
        """A canonical tensor's present values."""
        at = held(self.model, self.architecture)[name]
        return at.read(self.model.get_parameter(at.parameter).detach())

    def write(self, name: str, values: torch.Tensor) -> None:
        """Write a canonical tensor."""
        at = held(self.model, self.architecture)[name]
        at.write(self.model.get_parameter(at.parameter).data, values)


def in_memory(config: PretrainedConfig, seed: int = 0) -> InMemory:
    """A model of a config with random weights, float32, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    stored = {name: TensorFacts("F32", tuple(p.shape)) for name, p in model.named_parameters()}
    described = config.to_dict()
    architecture = recognise(described, stored)
    places = held(model, architecture)
    tensors = {
        name: TensorFacts("F32", tuple(at.read(model.get_parameter(at.parameter)).shape)) for name, at in places.items()
    }
    return InMemory(model, architecture, families(architecture, described, tensors))


def ids_of(model: InMemory, windows: int = 3, tokens: int = 12, seed: int = 1) -> torch.Tensor:
    """Random token ids [windows, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.architecture.vocabulary, (windows, tokens), generator=generator)


def units(found: InMemory, *kinds: str) -> list[Family]:
    """The units of some kinds."""
    kept = list(found.families)
    if "hidden" in kinds:
        names = held(found.model, found.architecture)
        tensors = {name: TensorFacts("F32", tuple(found.read(name).shape)) for name in names}
        kept += hidden_families(found.architecture, found.model.config.to_dict(), tensors)
    if "layer" in kinds:
        kept += block_families(found.architecture)
    return [family for family in kept if family.kind in kinds]


def logits(found: InMemory) -> Tensor:
    with torch.no_grad():
        found_BTV: Tensor = found.model(input_ids=ids_of(found), use_cache=False).logits
    return found_BTV


def write(found: InMemory, change: Callable[[str, Tensor], Tensor]) -> None:
    """Change every tensor once; a tied head is its embedding."""
    tied = found.model.config.tie_word_embeddings
    for name in held(found.model, found.architecture):
        if not (tied and name == found.architecture.layout.head_weight):
            found.write(name, change(name, found.read(name).clone()))

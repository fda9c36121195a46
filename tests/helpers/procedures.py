"""Methods on single weights, driven by hand as the loop drives them. O, I = outputs, inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from workers.engine.architectures.architecture import Architecture
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.sparsity import removed
from workers.engine.contracts.training import Procedure, Target
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.registry import method_of, methods


def llama() -> tuple[nn.Module, Architecture]:
    """Random, of two blocks."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 30}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    facts = {name: TensorFacts("F32", tuple(own.shape)) for name, own in model.named_parameters()}
    return model, recognise(model.config.to_dict(), facts)


def target_of(architecture: Architecture, sparsity: float, kept_of: tuple[int, int] | None = None) -> Target:
    """The same sparsity in every layer."""
    layers = architecture.layers
    return Target(
        sparsity,
        layers=layers,
        sparsity={layer.name: sparsity for layer in layers},
        counts={layer.name: removed(layer.shape, sparsity, "matrix", kept_of) for layer in layers},
        kept_of=kept_of,
    )


@dataclass
class Driven:
    """A model under a method."""

    model: nn.Module
    architecture: Architecture
    procedure: Procedure
    optimizer: torch.optim.Optimizer
    done: int = 0

    @classmethod
    def by(cls, name: str, sparsity: float, kept_of: tuple[int, int] | None = None, **params: Any) -> Driven:
        (method,) = (method for method in methods("train") if method.name == name)
        model, architecture = llama()
        parsed = method.params(dataset="text.txt", **params)
        target = target_of(architecture, sparsity, kept_of)
        procedure = method_of("train", parsed).function(model, architecture, target, parsed)
        return cls(model, architecture, procedure, procedure.optimizer(torch.optim.AdamW, parsed.learning_rate, 0.0))

    def loss(self, seed: int = 0) -> Tensor:
        ids_BT = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(seed))
        return self.model(input_ids=ids_BT, labels=ids_BT).loss

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.procedure.begin(self.done)
        self.loss(self.done).backward()
        self.procedure.before_clipping()
        self.procedure.before_update(self.done)
        self.optimizer.step()
        self.procedure.after_update(self.done, self.optimizer)
        self.done += 1

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights of the layers that are pruned."""
        own = dict(self.model.named_parameters())
        return {layer.weight: own[layer.weight].detach().clone() for layer in self.architecture.layers}

    def shown(self) -> dict[str, Tensor]:
        """The same as the model computes with them when it is measured."""
        with self.procedure.evaluating():
            return self.weights()

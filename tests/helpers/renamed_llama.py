"""Llama under other names: a family of its own for transformers, and for the engine a layout of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from typing import Any

import pytest
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaModel

from tests.helpers.cluster import ROOT
from workers.engine.architectures import layouts
from workers.engine.architectures.built import table
from workers.engine.architectures.generation.row import family_row

ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
MLP = {"gate_proj": "gate", "up_proj": "fc1", "down_proj": "fc2"}
BLOCK = {"self_attn": "attn", "mlp": "ffn", "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
DECODER = {"layers": "h", "embed_tokens": "wte", "norm": "ln_f"}
MODEL = {"model": "transformer", "lm_head": "unembed"}
NAMES = ATTENTION | MLP | BLOCK | DECODER | MODEL


def renamed(name: str) -> str:
    """The name here of a module or tensor of a Llama."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def under_other_names(names: dict[str, str]) -> type:
    """A base whose submodules are stored under other names, and found by both."""

    def rename(self: nn.Module) -> None:
        for old, new in names.items():
            self._modules[new] = self._modules.pop(old)

    found = {old: property(attrgetter(new)) for old, new in names.items()}
    return type("UnderOtherNames", (), found | {"rename": rename})


class RenamedAttention(under_other_names(ATTENTION), LlamaAttention):  # type: ignore[misc]
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rename()


class RenamedMLP(under_other_names(MLP), LlamaMLP):  # type: ignore[misc]
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rename()


class RenamedBlock(under_other_names(BLOCK), LlamaDecoderLayer):  # type: ignore[misc]
    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self._modules.update(self_attn=RenamedAttention(config, layer_idx), mlp=RenamedMLP(config))
        self.rename()


class RenamedConfig(LlamaConfig):
    model_type = "renamed"


class RenamedModel(under_other_names(DECODER), LlamaModel):  # type: ignore[misc]
    config_class = RenamedConfig

    def __init__(self, config: RenamedConfig) -> None:
        super().__init__(config)
        blocks = [RenamedBlock(config, index) for index in range(config.num_hidden_layers)]
        self._modules["layers"] = nn.ModuleList(blocks)
        self.rename()


class RenamedForCausalLM(under_other_names(MODEL), LlamaForCausalLM):  # type: ignore[misc]
    config_class = RenamedConfig
    base_model_prefix = "transformer"
    _tied_weights_keys = {"unembed.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: RenamedConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.vocab_size = config.vocab_size
        self.transformer = RenamedModel(config)
        self.unembed = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


@cache
def row() -> dict[str, Any]:
    """The family's row by `generate`; it takes a second."""
    found = family_row("renamed")
    assert found is not None
    return found


@pytest.fixture
def renamed_layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The family and its layout, as if transformers and the engine had them: a class, a table, and what `generate` says
    of the class."""
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "renamed", RenamedConfig)
    monkeypatch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING._extra_content, RenamedConfig, RenamedForCausalLM)
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(ROOT / "tests/helpers/more_layouts")])
    layouts.layouts.cache_clear()
    content = table()
    monkeypatch.setitem(content["families"], "renamed", row())
    monkeypatch.setitem(content["kinds"], "decoder", [*content["kinds"]["decoder"], "renamed"])
    yield
    layouts.layouts.cache_clear()

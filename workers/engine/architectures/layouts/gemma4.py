"""Gemma 4's layout: Llama's, but that attention to all of a text may take its keys as values, and MLPs may have experts
beside them, all matrices of a block's in two tensors.
"""

from dataclasses import replace

from workers.engine.architectures.architecture import Part
from workers.engine.architectures.layouts import llama
from workers.engine.architectures.parts import experts, shared_mlp, stacked

_ATTENTION = llama.LAYOUT.mixers[0]
_WITHOUT_VALUES = Part(
    _ATTENTION.module, tuple(layer for layer in _ATTENTION.layers if not layer.name.endswith("v_proj"))
)
_EXPERT = tuple(f"experts.{{}}.{name}" for name in ("gate_proj", "up_proj", "down_proj"))

LAYOUT = replace(
    llama.LAYOUT,
    name="Gemma 4",
    mixers=(_ATTENTION, _WITHOUT_VALUES),
    mlps=(
        *llama.LAYOUT.mlps,
        experts(
            "",
            *_EXPERT,
            routers=("router.proj.weight", "router.per_expert_scale"),
            shared=shared_mlp("mlp"),
        ),
    ),
    plain_hidden=(),
    stored=(stacked("experts.gate_up_proj", _EXPERT[:2]), stacked("experts.down_proj", _EXPERT[2:])),
)

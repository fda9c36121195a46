"""Granite 4's layout: Mamba 2 and attention in turn; a mixture beside the MLP of all tokens, or that MLP alone."""

from dataclasses import replace

from workers.engine.architectures.layouts import granite_moe
from workers.engine.architectures.mixers import dual
from workers.engine.architectures.parts import gated

LAYOUT = replace(
    granite_moe.LAYOUT,
    name="Granite 4 hybrid",
    mixers=(*granite_moe.LAYOUT.mixers, dual("mamba")),
    mlps=(*granite_moe.LAYOUT.mlps, gated("shared_mlp", "gate_proj", "up_proj", "output_linear")),
)

"""Gemma 4's layout: Llama's, but that attention to all of a text may take its keys as values."""

from dataclasses import replace

from workers.engine.architectures.architecture import Part
from workers.engine.architectures.layouts import llama

_ATTENTION = llama.LAYOUT.mixers[0]
_WITHOUT_VALUES = Part(
    _ATTENTION.module, tuple(layer for layer in _ATTENTION.layers if not layer.name.endswith("v_proj"))
)

LAYOUT = replace(llama.LAYOUT, name="Gemma 4", mixers=(_ATTENTION, _WITHOUT_VALUES), plain_hidden=())

"""The layout of GPT-NeoX Japanese: GPT-NeoX's under other paths; its last block alone has a bias in its attention."""

from dataclasses import replace

from workers.engine.architectures.layouts.gpt_neox import LAYOUT as _NEOX

LAYOUT = replace(
    _NEOX,
    name="GPT-NeoX Japanese",
    blocks="gpt_neox_japanese.layers",
    embedding="gpt_neox_japanese.embed_in",
    final_norm="gpt_neox_japanese.final_layer_norm",
    moved=(),
    returns_tuple=True,
)

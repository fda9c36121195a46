"""Mamba's layout: blocks of a mixer alone. Mamba, Mamba 2, Falcon-Mamba."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.mixers import NOTHING, dual, selective

LAYOUT = Layout(
    name="Mamba",
    blocks="backbone.layers",
    embedding="backbone.embeddings",
    final_norm="backbone.norm_f",
    head="lm_head",
    mixers=(selective("mixer"), dual("mixer")),
    mlps=(NOTHING,),
)

"""MiniMax's layout: Mixtral's, with attention that is linear in the length of the text in some blocks."""

from dataclasses import replace

from workers.engine.architectures.layouts import mixtral
from workers.engine.architectures.mixers import recurrent

LAYOUT = replace(
    mixtral.LAYOUT,
    name="MiniMax",
    mixers=(
        *mixtral.LAYOUT.mixers,
        recurrent(
            "self_attn",
            ("qkv_proj", "output_gate"),
            "out_proj",
            kept=("slope_rate", "query_decay", "key_decay", "diagonal_decay"),
        ),
    ),
)

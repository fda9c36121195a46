"""RecurrentGemma's layout: gated linear recurrences and attention to a window in turn."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.mixers import recurrent
from workers.engine.architectures.parts import attention, gated

LAYOUT = Layout(
    name="RecurrentGemma",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.final_norm",
    head="lm_head",
    mixers=(
        attention("temporal_block", "q_proj", "k_proj", "v_proj", "o_proj"),
        recurrent(
            "temporal_block",
            ("linear_y", "linear_x"),
            "linear_out",
            kept=(
                "conv_1d",
                "rg_lru.input_gate_weight",
                "rg_lru.input_gate_bias",
                "rg_lru.recurrent_gate_weight",
                "rg_lru.recurrent_gate_bias",
            ),
        ),
    ),
    mlps=(gated("mlp_block", "gate_proj", "up_proj", "down_proj"),),
    of_each_head=("rotary_emb",),
)

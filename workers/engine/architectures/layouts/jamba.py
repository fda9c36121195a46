"""Jamba's layout: Mamba and attention in turn, an MLP and a mixture in turn."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.mixers import selective
from workers.engine.architectures.parts import attention, experts, gated, stacked

_GATE, _UP, _DOWN = (f"feed_forward.experts.{{}}.{name}" for name in ("gate_proj", "up_proj", "down_proj"))

LAYOUT = Layout(
    name="Jamba",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.final_layernorm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"), selective("mamba")),
    mlps=(
        gated("feed_forward", "gate_proj", "up_proj", "down_proj"),
        experts(
            "feed_forward",
            "experts.{}.gate_proj",
            "experts.{}.up_proj",
            "experts.{}.down_proj",
            routers=("router.weight",),
        ),
    ),
    of_each_head=("rotary_emb",),
    built=(
        stacked("feed_forward.experts.gate_up_proj", (_GATE, _UP)),
        stacked("feed_forward.experts.down_proj", (_DOWN,)),
    ),
)

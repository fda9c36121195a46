"""LFM2's layout: short convolutions and attention in turn, with an MLP or a mixture."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.mixers import recurrent
from workers.engine.architectures.parts import attention, experts, gated, stacked

_W1, _W2, _W3 = (f"feed_forward.experts.{{}}.{name}" for name in ("w1", "w2", "w3"))

LAYOUT = Layout(
    name="LFM2",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.embedding_norm",
    head="lm_head",
    mixers=(
        attention("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"),
        recurrent("conv", ("in_proj",), "out_proj", kept=("conv",)),
    ),
    mlps=(
        gated("feed_forward", "w1", "w3", "w2"),
        experts(
            "feed_forward",
            "experts.{}.w1",
            "experts.{}.w3",
            "experts.{}.w2",
            routers=("gate.weight", "expert_bias"),
        ),
    ),
    of_each_head=("q_layernorm", "k_layernorm", "q_norm", "k_norm", "rotary_emb"),
    built=(
        stacked("feed_forward.experts.gate_up_proj", (_W1, _W3)),
        stacked("feed_forward.experts.down_proj", (_W2,)),
    ),
    renamed_in=(("lfm3", (("self_attn.gate_proj", "self_attn.g_proj"),)),),
)

"""Llama 4's layout: all experts' matrices of a block in two tensors, transposed; an MLP that all tokens go through."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, experts, gated, shared_mlp, stacked

_EXPERT = tuple(f"feed_forward.experts.{{}}.{name}" for name in ("gate_proj", "up_proj", "down_proj"))

LAYOUT = Layout(
    name="Llama 4",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),),
    mlps=(
        gated("feed_forward", "gate_proj", "up_proj", "down_proj"),
        experts(
            "feed_forward",
            "experts.{}.gate_proj",
            "experts.{}.up_proj",
            "experts.{}.down_proj",
            routers=("router.weight",),
            shared=shared_mlp("feed_forward.shared_expert"),
            reads_all=True,
        ),
    ),
    of_each_head=("qk_norm", "rotary_emb"),
    stored=(
        stacked("feed_forward.experts.gate_up_proj", _EXPERT[:2], transposed=True),
        stacked("feed_forward.experts.down_proj", _EXPERT[2:], transposed=True),
    ),
)

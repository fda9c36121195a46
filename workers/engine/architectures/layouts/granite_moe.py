"""Granite's layout of a mixture: all experts' matrices of a block in two tensors, gate and up in one.

Granite-MoE, and with an MLP that all tokens go through, Granite-MoE-shared.
"""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, experts, fused, shared_mlp, stacked

_EXPERT = tuple(f"block_sparse_moe.experts.{{}}.{name}" for name in ("gate_proj", "up_proj", "down_proj"))
_STORED = (
    stacked("block_sparse_moe.input_linear.weight", _EXPERT[:2]),
    stacked("block_sparse_moe.output_linear.weight", _EXPERT[2:]),
)
_BUILT = (
    stacked("block_sparse_moe.experts.gate_up_proj", _EXPERT[:2]),
    stacked("block_sparse_moe.experts.down_proj", _EXPERT[2:]),
)
_SHARED = fused("shared_mlp.input_linear", ("shared_mlp.gate_proj", "shared_mlp.up_proj"))

LAYOUT = Layout(
    name="Granite-MoE",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),),
    mlps=tuple(
        experts(
            "block_sparse_moe",
            "experts.{}.gate_proj",
            "experts.{}.up_proj",
            "experts.{}.down_proj",
            routers=("router.layer.weight", "router.weight"),
            shared=shared,
        )
        for shared in (None, shared_mlp("shared_mlp", down="output_linear"))
    ),
    of_each_head=("rotary_emb",),
    stored=(*_STORED, *_SHARED),
    built=(*_BUILT, *_SHARED),
    renamed=(("block_sparse_moe.router.layer", "block_sparse_moe.router"),),
)

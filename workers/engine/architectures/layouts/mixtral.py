"""Mixtral's layout: a mixture of experts whose matrices files hold one by one, under names of their own.

Mixtral, PhiMoE, MiniMax M2.
"""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, experts, stacked

_W1, _W2, _W3 = (f"block_sparse_moe.experts.{{}}.{name}" for name in ("w1", "w2", "w3"))

LAYOUT = Layout(
    name="Mixtral",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),),
    mlps=(
        experts(
            "block_sparse_moe",
            "experts.{}.w1",
            "experts.{}.w3",
            "experts.{}.w2",
            routers=("gate.weight", "e_score_correction_bias"),
        ),
    ),
    of_each_head=("q_norm", "k_norm", "rotary_emb"),
    built=(
        stacked("block_sparse_moe.experts.gate_up_proj", (_W1, _W3)),
        stacked("block_sparse_moe.experts.down_proj", (_W2,)),
    ),
    renamed=(("block_sparse_moe", "mlp"),),
    renamed_in=(("phimoe", (("block_sparse_moe.gate", "mlp.router"),)),),
)

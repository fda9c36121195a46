"""gpt-oss: all experts' matrices of a block in two tensors, transposed, the outputs of gate and up in turn; biases."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, experts, stacked

_EXPERT = tuple(f"mlp.experts.{{}}.{name}" for name in ("gate_proj", "up_proj", "down_proj"))

LAYOUT = Layout(
    name="gpt-oss",
    blocks="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),),
    mlps=(
        experts(
            "mlp",
            "experts.{}.gate_proj",
            "experts.{}.up_proj",
            "experts.{}.down_proj",
            routers=("router.weight", "router.bias"),
        ),
    ),
    of_each_head=("rotary_emb",),
    stored=(
        stacked("mlp.experts.gate_up_proj", _EXPERT[:2], repeats=True, transposed=True),
        stacked("mlp.experts.down_proj", _EXPERT[2:], transposed=True),
        stacked("mlp.experts.gate_up_proj_bias", _EXPERT[:2], repeats=True, end="bias"),
        stacked("mlp.experts.down_proj_bias", _EXPERT[2:], end="bias"),
    ),
)

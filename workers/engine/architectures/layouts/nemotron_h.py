"""Nemotron-H's layout: each block is a Mamba 2 mixer, attention, an MLP or a mixture alone; MLPs have no gate."""

from dataclasses import replace

from workers.engine.architectures.architecture import Layout, Part
from workers.engine.architectures.mixers import NOTHING, dual
from workers.engine.architectures.parts import attention, experts, plain, stacked

_UP, _DOWN = (f"mixer.experts.{{}}.{name}" for name in ("up_proj", "down_proj"))
_SHARED = plain("mixer.shared_experts", "up_proj", "down_proj")


def _shared() -> Part:
    up, down = _SHARED.layers
    return Part(
        _SHARED.module,
        (
            replace(up, stream="shared_input", writes="shared_channel"),
            replace(down, stream="shared_hidden", reads="shared_channel"),
        ),
    )


LAYOUT = Layout(
    name="Nemotron-H",
    blocks="backbone.layers",
    embedding="backbone.embeddings",
    final_norm="backbone.norm_f",
    head="lm_head",
    mixers=(dual("mixer"), attention("mixer", "q_proj", "k_proj", "v_proj", "o_proj"), NOTHING),
    mlps=(
        NOTHING,
        plain("mixer", "up_proj", "down_proj"),
        experts(
            "mixer",
            None,
            "experts.{}.up_proj",
            "experts.{}.down_proj",
            routers=("gate.weight", "gate.e_score_correction_bias"),
            shared=_shared(),
        ),
    ),
    built=(stacked("mixer.experts.up_proj", (_UP,)), stacked("mixer.experts.down_proj", (_DOWN,))),
    moved=(("backbone", "model"),),
)

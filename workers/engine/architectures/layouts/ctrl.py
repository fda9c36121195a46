"""CTRL's layout: names of its own, sinusoidal positions, a head with a bias."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain

LAYOUT = Layout(
    name="CTRL",
    blocks="transformer.h",
    embedding="transformer.w",
    final_norm="transformer.layernorm",
    head="lm_head",
    mixers=(attention("multi_head_attention", "Wq", "Wk", "Wv", "dense"),),
    mlps=(plain("ffn", "0", "2"),),
)

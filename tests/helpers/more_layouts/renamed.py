"""The layout of `tests/helpers/renamed_llama.py`: what a new layout takes, a table in `architectures/layouts/`."""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, gated

LAYOUT = Layout(
    name="Renamed",
    blocks="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    head="unembed",
    mixers=(attention("attn", "query", "key", "value", "out"),),
    mlps=(gated("ffn", "gate", "fc1", "fc2"),),
    plain_hidden=("renamed",),
)

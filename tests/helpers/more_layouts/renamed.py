"""The layout of `tests/helpers/renamed_llama.py`: what a new layout takes, a table in `architectures/layouts/`."""

from workers.engine.architectures.architecture import Layout, Projection

LAYOUT = Layout(
    name="Renamed",
    blocks="transformer.h",
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    head="unembed",
    layers=(
        Projection("attn.query", "attention_input", reads="hidden", writes="head"),
        Projection("attn.key", "attention_input", reads="hidden", writes="head", cached=True),
        Projection("attn.value", "attention_input", reads="hidden", writes="head", cached=True),
        Projection("attn.out", "attention_output", reads="head", writes="hidden"),
        Projection("ffn.gate", "mlp_input", reads="hidden", writes="channel"),
        Projection("ffn.fc1", "mlp_input", reads="hidden", writes="channel"),
        Projection("ffn.fc2", "mlp_hidden", reads="channel", writes="hidden"),
    ),
    attention="attn",
    mlp="ffn",
    plain_hidden=("renamed",),
)

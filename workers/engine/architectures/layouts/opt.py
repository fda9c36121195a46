"""OPT's layout: the MLP's two layers lie in the block itself, positions are learned.

The blocks of OPT-350m have their norms after the parts, and it projects embeddings of 512 dimensions to 1024 and back.
"""

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.parts import attention, plain

LAYOUT = Layout(
    name="OPT",
    blocks="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    final_norm="model.decoder.final_layer_norm",
    head="lm_head",
    mixers=(attention("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),),
    mlps=(plain("", "fc1", "fc2"),),
    after=("model.decoder.project_out",),
)
